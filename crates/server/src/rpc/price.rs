//! PriceRun and PriceEvaluation: what a run would cost every dataset, before anything is spent. From the quote on both
//! kinds are runs: StartRun, WatchRun, ListRuns, CancelRun and FetchRun know both.

use super::blocking;
use crate::acceptor::Peer;
use crate::errors::Failure;
use crate::evaluation::{self, EvaluationRequest};
use crate::governance;
use crate::log::{Event, Hex};
use crate::models::Model;
use crate::price::{self, PriceLimits, Terms};
use crate::priced::Priced;
use crate::spec::RunRequest;
use crate::state::Server;
use crate::warm_start::{self, WeightsSource};
use bastionai_ledger::{DatasetId, Digest32, Principal, RunKind};
use bastionai_vault::Weights;
use bastionai_wire::v1;
use std::sync::Arc;

pub(crate) async fn training(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::PriceRunRequest,
) -> Result<v1::Quote, Failure> {
    let request = RunRequest::parse(&required(request.spec)?, &server.config.limits)?;
    let scientist = peer.principal;
    let place = server.price_place(scientist).await?;
    blocking(move || {
        let _until_priced = place;
        let asked = Asked {
            kind: RunKind::Training,
            model: request.model,
            datasets: &request.datasets,
            weights: request.initial_weights,
        };
        let grounds = asked.grounds(&server, scientist)?;
        let (weights, boot) = (grounds.weights.as_ref(), server.boot.as_priced());
        let priced = price::price(
            request,
            &grounds.model,
            weights,
            &grounds.terms,
            boot,
            grounds.limits,
        )?;
        let quote = server
            .vault
            .read(|ledger| priced.to_wire(ledger, server.throughput()));
        offer(&server, Priced::Training(priced));
        Ok(quote)
    })
    .await
}

pub(crate) async fn evaluation(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::PriceEvaluationRequest,
) -> Result<v1::EvaluationQuote, Failure> {
    let request = EvaluationRequest::parse(&required(request.spec)?)?;
    let scientist = peer.principal;
    let place = server.price_place(scientist).await?;
    blocking(move || {
        let _until_priced = place;
        let asked = Asked {
            kind: RunKind::Evaluation,
            model: request.model,
            datasets: &request.datasets,
            weights: request.weights,
        };
        let grounds = asked.grounds(&server, scientist)?;
        let (weights, boot) = (grounds.weights.as_ref(), server.boot.as_priced());
        let priced = evaluation::price(
            request,
            &grounds.model,
            weights,
            &grounds.terms,
            boot,
            grounds.limits,
        )?;
        let quote = server.vault.read(|ledger| priced.to_wire(ledger));
        offer(&server, Priced::Evaluation(priced));
        Ok(quote)
    })
    .await
}

fn required<T>(spec: Option<T>) -> Result<T, Failure> {
    spec.ok_or_else(|| Failure::malformed("spec is missing"))
}

/// What both kinds of run name.
struct Asked<'a> {
    kind: RunKind,
    model: Digest32,
    datasets: &'a [DatasetId],
    weights: Option<WeightsSource>,
}

/// What both kinds are priced on.
struct Grounds {
    model: Arc<Model>,
    terms: Terms,
    /// To start from, if not the model's own.
    weights: Option<Weights>,
    limits: PriceLimits,
}

impl Asked<'_> {
    fn grounds(&self, server: &Server, scientist: Principal) -> Result<Grounds, Failure> {
        let model = server.models.held(scientist, self.model.as_bytes())?;
        let now_unix_ms = server.now_unix_ms();
        let terms = server.vault.read(|ledger| {
            let datasets = governance::usable(ledger, self.datasets, &scientist, self.kind, now_unix_ms)?;
            Ok::<_, Failure>(Terms::of(ledger, &datasets, scientist))
        })?;
        Ok(Grounds {
            model,
            terms,
            weights: warm_start::load(server, self.weights, scientist)?,
            limits: PriceLimits {
                model_bytes: server.config.limits.model_bytes,
                memory_bytes: server.run_memory_bytes(),
                kept_bytes: server.config.limits.kept_bytes,
                expires_unix_ms: now_unix_ms + server.config.limits.quote_lifetime_ms,
            },
        })
    }
}

/// From now on the quote may be started.
fn offer(server: &Server, priced: Priced) {
    Event::Quoted {
        digest: Hex(priced.run_digest().as_bytes()),
        principal: priced.scientist(),
    }
    .emit();
    server.quotes.insert(priced);
}
