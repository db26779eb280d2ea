//! PriceRun: what a run would cost every dataset, before anything is spent.

use super::blocking;
use crate::acceptor::Peer;
use crate::errors::{Failure, Reason};
use crate::governance;
use crate::log::{Event, Hex};
use crate::price::{self, PriceLimits, Terms};
use crate::priced::Priced;
use crate::spec::RunRequest;
use crate::state::Server;
use crate::warm_start;
use bastionai_ledger::RunKind;
use bastionai_wire::v1;
use std::sync::Arc;

pub(crate) async fn price(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::PriceRunRequest,
) -> Result<v1::Quote, Failure> {
    let spec = request
        .spec
        .ok_or_else(|| Failure::malformed("spec is missing"))?;
    let request = RunRequest::parse(&spec, &server.config.limits)?;
    let scientist = peer.principal;
    let place = server.price_place(scientist).await?;
    blocking(move || {
        let model = server
            .models
            .find(scientist, request.model.as_bytes())
            .ok_or_else(unknown_model)?;
        let now_unix_ms = server.now_unix_ms();
        let terms = server.vault.read(|ledger| {
            let kind = RunKind::Training;
            let datasets = governance::usable(ledger, &request.datasets, &scientist, kind, now_unix_ms)?;
            Ok::<_, Failure>(Terms::of(ledger, &datasets, scientist))
        })?;
        let initial = warm_start::load(&server, request.initial_weights, scientist)?;
        let limits = PriceLimits {
            model_bytes: server.config.limits.model_bytes,
            memory_bytes: server.config.trainer.memory_bytes,
            kept_bytes: server.config.limits.kept_bytes,
            expires_unix_ms: now_unix_ms + server.config.limits.quote_lifetime_ms,
        };
        let priced = price::price(
            request,
            &model,
            initial.as_ref(),
            &terms,
            server.boot.as_priced(),
            limits,
        )?;
        let quote = server
            .vault
            .read(|ledger| priced.to_wire(ledger, server.throughput()));
        Event::Quoted {
            digest: Hex(priced.run_digest.as_bytes()),
            principal: scientist,
        }
        .emit();
        server.quotes.insert(Priced::Training(priced));
        drop(place);
        Ok(quote)
    })
    .await
}

/// A model that was never uploaded by this principal, or had to make room.
pub(crate) fn unknown_model() -> Failure {
    Failure::new(
        Reason::UnknownModel,
        "the server does not hold this model (any more): upload it, then ask the price again",
    )
}
