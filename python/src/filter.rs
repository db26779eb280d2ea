//! Filters without a server: whether one more mechanism, chosen in view of earlier outputs, fits a lifetime.

use crate::errors::exception;
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::filter::amount::Amount;
use bastionai_privacy::filter::odometer::Odometer;
use bastionai_privacy::filter::renyi::{RenyiCost, RenyiTotal};
use bastionai_privacy::filter::terms::{Order, RenyiTerms};
use pyo3::prelude::*;
use std::fmt::Display;

/// A lifetime, and what was spent of it: the filter and the odometer that ledgers count with.
#[pyclass(module = "bastionai._internal")]
pub(crate) struct RenyiFilter {
    terms: RenyiTerms,
    filter: bastionai_privacy::filter::renyi::RenyiFilter,
    odometer: Odometer,
    spent: RenyiTotal,
}

fn invalid(py: Python<'_>, error: impl Display) -> PyErr {
    exception(py, "InvalidRequest", error)
}

impl RenyiFilter {
    fn cost(&self, py: Python<'_>, event_json: &str, relation: &str) -> PyResult<RenyiCost> {
        let event: DpEvent = serde_json::from_str(event_json).map_err(|error| invalid(py, error))?;
        let relation: NeighboringRelation = relation.parse().map_err(|error| invalid(py, error))?;
        self.terms
            .cost_of(&event, relation)
            .map_err(|error| invalid(py, error))
    }
}

#[pymethods]
impl RenyiFilter {
    #[new]
    fn new(py: Python<'_>, epsilon: &str, delta: &str, orders: Option<Vec<(String, u32)>>) -> PyResult<Self> {
        let lifetime = Amount::new(
            epsilon.parse().map_err(|error| invalid(py, error))?,
            delta.parse().map_err(|error| invalid(py, error))?,
        );
        let terms = match orders {
            None => RenyiTerms::default(),
            Some(named) => {
                let parsed: Result<Vec<Order>, _> = named.iter().map(|(order, _)| order.parse()).collect();
                let weights: Vec<u32> = named.iter().map(|(_, weight)| *weight).collect();
                RenyiTerms::new(&parsed.map_err(|error| invalid(py, error))?, &weights)
                    .map_err(|error| invalid(py, error))?
            }
        };
        let filter = bastionai_privacy::filter::renyi::RenyiFilter::new(lifetime, &terms)
            .map_err(|error| invalid(py, error))?;
        let odometer = Odometer::new(lifetime, &terms).map_err(|error| invalid(py, error))?;
        let spent = RenyiTotal::zero(filter.orders().len());
        Ok(Self {
            terms,
            filter,
            odometer,
            spent,
        })
    }

    /// Whether it fits. Changes nothing.
    fn admits(&self, py: Python<'_>, event_json: &str, relation: &str) -> PyResult<bool> {
        let cost = self.cost(py, event_json, relation)?;
        Ok(self.filter.admits(&self.spent, &cost))
    }

    /// Counts it if it fits, and says whether it did.
    fn spend(&mut self, py: Python<'_>, event_json: &str, relation: &str) -> PyResult<bool> {
        let cost = self.cost(py, event_json, relation)?;
        let fits = self.filter.admits(&self.spent, &cost);
        if fits {
            self.spent = self.spent.plus(&cost);
        }
        Ok(fits)
    }

    /// ε that the sums mean at the lifetime's δ, a decimal.
    fn epsilon(&self) -> String {
        self.filter.epsilon(&self.spent).to_string()
    }

    /// ε of the odometer, a decimal; none beyond its highest rung.
    fn reading(&self) -> Option<String> {
        self.odometer
            .read(&self.spent)
            .map(|amount| amount.epsilon.to_string())
    }
}
