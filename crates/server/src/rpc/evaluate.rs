//! PriceEvaluation: what an evaluation would cost every dataset, before anything is spent. From there on it is a
//! run: StartRun, WatchRun, ListRuns, CancelRun and FetchRun know both kinds.

use super::blocking;
use super::price::unknown_model;
use crate::acceptor::Peer;
use crate::errors::Failure;
use crate::evaluation::{self, EvaluationRequest};
use crate::governance;
use crate::log::{Event, Hex};
use crate::price::{PriceLimits, Terms};
use crate::priced::Priced;
use crate::state::Server;
use crate::warm_start;
use bastionai_ledger::RunKind;
use bastionai_wire::v1;
use std::sync::Arc;

pub(crate) async fn price(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::PriceEvaluationRequest,
) -> Result<v1::EvaluationQuote, Failure> {
    let spec = request
        .spec
        .ok_or_else(|| Failure::malformed("spec is missing"))?;
    let request = EvaluationRequest::parse(&spec)?;
    let scientist = peer.principal;
    let place = server.price_place(scientist).await?;
    blocking(move || {
        let model = server
            .models
            .find(scientist, request.model.as_bytes())
            .ok_or_else(unknown_model)?;
        let now_unix_ms = server.now_unix_ms();
        let terms = server.vault.read(|ledger| {
            let kind = RunKind::Evaluation;
            let datasets = governance::usable(ledger, &request.datasets, &scientist, kind, now_unix_ms)?;
            Ok::<_, Failure>(Terms::of(ledger, &datasets, scientist))
        })?;
        let weights = warm_start::load(&server, request.weights, scientist)?;
        let limits = PriceLimits {
            model_bytes: server.config.limits.model_bytes,
            memory_bytes: server.config.trainer.memory_bytes,
            kept_bytes: 0,
            expires_unix_ms: now_unix_ms + server.config.limits.quote_lifetime_ms,
        };
        let priced = evaluation::price(
            request,
            &model,
            weights.as_ref(),
            &terms,
            server.boot.as_priced(),
            limits,
        )?;
        let quote = server.vault.read(|ledger| priced.to_wire(ledger));
        Event::Quoted {
            digest: Hex(priced.run_digest.as_bytes()),
            principal: scientist,
        }
        .emit();
        server.quotes.insert(Priced::Evaluation(priced));
        drop(place);
        Ok(quote)
    })
    .await
}
