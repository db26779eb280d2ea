//! PriceRun and PriceEvaluation: what a run would cost every dataset, before anything is spent. From the quote on both
//! kinds are runs: StartRun, WatchRun, ListRuns, CancelRun and FetchRun know both.

use super::blocking;
use crate::acceptor::Peer;
use crate::errors::Failure;
use crate::evaluation::{self, EvaluationRequest};
use crate::governance;
use crate::log::{Event, Hex};
use crate::price;
use crate::priced::Priced;
use crate::spec::RunRequest;
use crate::state::Server;
use crate::terms::{Grounds, PriceLimits, Terms};
use crate::warm_start::{self, WeightsSource};
use bastionai_ledger::{DatasetId, Digest32, Principal, RunKind};
use bastionai_wire::v1;
use std::sync::Arc;

pub(crate) async fn training(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::PriceRunRequest,
) -> Result<v1::Quote, Failure> {
    let request = RunRequest::parse(&required(request.spec)?, &server.config.limits)?;
    let asked = Asked {
        kind: RunKind::Training,
        model: request.model,
        datasets: request.datasets.clone(),
        weights: request.initial_weights,
    };
    quoted(server, peer.principal, asked, |server, grounds| {
        let priced = price::price(request, grounds)?;
        let quote = server
            .vault
            .read(|ledger| priced.to_wire(ledger, server.throughput()));
        Ok((Priced::Training(priced), quote))
    })
    .await
}

pub(crate) async fn evaluation(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::PriceEvaluationRequest,
) -> Result<v1::EvaluationQuote, Failure> {
    let request = EvaluationRequest::parse(&required(request.spec)?)?;
    let asked = Asked {
        kind: RunKind::Evaluation,
        model: request.model,
        datasets: request.datasets.clone(),
        weights: request.weights,
    };
    quoted(server, peer.principal, asked, |server, grounds| {
        let priced = evaluation::price(request, grounds)?;
        let quote = server.vault.read(|ledger| priced.to_wire(ledger));
        Ok((Priced::Evaluation(priced), quote))
    })
    .await
}

fn required<T>(spec: Option<T>) -> Result<T, Failure> {
    spec.ok_or_else(|| Failure::malformed("spec is missing"))
}

/// What both kinds of run name.
struct Asked {
    kind: RunKind,
    model: Digest32,
    datasets: Vec<DatasetId>,
    weights: Option<WeightsSource>,
}

/// Waits for a place among the prices, and offers what is priced there. It may be started from then on.
async fn quoted<Quote: Send + 'static>(
    server: Arc<Server>,
    scientist: Principal,
    asked: Asked,
    price: impl FnOnce(&Server, &Grounds) -> Result<(Priced, Quote), Failure> + Send + 'static,
) -> Result<Quote, Failure> {
    let place = server.price_place(scientist).await?;
    blocking(move || {
        let _until_priced = place;
        let (priced, quote) = price(&server, &asked.grounds(&server, scientist)?)?;
        Event::Quoted {
            digest: Hex(priced.run_digest().as_bytes()),
            principal: priced.scientist(),
        }
        .emit();
        server.quotes.insert(priced);
        Ok(quote)
    })
    .await
}

impl Asked {
    fn grounds(&self, server: &Server, scientist: Principal) -> Result<Grounds, Failure> {
        let model = server.models.held(scientist, self.model.as_bytes())?;
        let now_unix_ms = server.now_unix_ms();
        let terms = server.vault.read(|ledger| {
            let datasets = governance::usable(ledger, &self.datasets, &scientist, self.kind, now_unix_ms)?;
            Ok::<_, Failure>(Terms::of(ledger, &datasets, scientist))
        })?;
        Ok(Grounds {
            model,
            weights: warm_start::load(server, self.weights, scientist)?,
            terms,
            boot: server.boot.as_priced(),
            limits: PriceLimits {
                model_bytes: server.config.limits.model_bytes,
                memory_bytes: server.run_memory_bytes(),
                kept_bytes: server.config.limits.kept_bytes,
                expires_unix_ms: now_unix_ms + server.config.limits.quote_lifetime_ms,
            },
        })
    }
}
