//! Operators that raise on values never get one they raise on (rule G4): an index out of range is replaced by
//! one in range, and the record it belongs to is marked, so that its loss and gradient count as zero.

use crate::error::Result;
use crate::operators::Guard;
use crate::program::{BatchAxis, Call, Expected, Prepared};
use bastionai_graph::typed::ValueId;
use tch::{Kind, Tensor};

/// Which records of the batch count: present, and in range wherever the graph indexes by them.
pub(crate) struct Counted {
    batch_size: i64,
    /// `[B]`, bool.
    mask: Tensor,
}

impl Counted {
    pub(crate) fn new(present: &Tensor, batch_size: i64) -> Self {
        Self {
            batch_size,
            mask: present.shallow_clone(),
        }
    }

    pub(crate) fn mask(&self) -> &Tensor {
        &self.mask
    }

    /// Excludes records that have a false element.
    fn require(&mut self, fine: &Tensor, batch: BatchAxis) -> Result<()> {
        let rows = fine
            .f_movedim_int(batch.axis, 0)?
            .f_reshape([self.batch_size, -1])?;
        self.mask = self.mask.f_logical_and(&rows.f_all_dim(1, false)?)?;
        Ok(())
    }
}

/// Replaces per-sample index arguments that are out of range; returns `(argument position, list position, tensor)`.
///
/// A `Shared` index is not touched: if it is out of range the self-test fails, before any record is seen.
pub(crate) fn replacements(
    call: &Call,
    values: &[Option<Tensor>],
    expected: &[Expected],
    counted: &mut Counted,
) -> Result<Vec<Replacement>> {
    let mut out = Vec::new();
    for site in sites(call, expected) {
        let Some(batch) = expected[site.value].batch else {
            continue;
        };
        let Some(tensor) = &values[site.value] else {
            continue;
        };
        if !is_integer(tensor.kind()) {
            continue; // cross_entropy with class probabilities indexes nothing
        }
        let mut fine = tensor.f_ge(site.low)?.f_logical_and(&tensor.f_lt(site.high)?)?;
        if let Some(ignored) = site.also {
            fine = fine.f_logical_or(&tensor.f_eq(ignored)?)?;
        }
        counted.require(&fine, batch)?;
        let replaced = tensor.f_where_scalarother(&fine, site.low.max(0))?;
        out.push(Replacement {
            argument: site.argument,
            element: site.element,
            tensor: replaced,
        });
    }
    Ok(out)
}

/// The per-sample values that [`replacements`] looks at.
pub(crate) fn guarded_values(call: &Call, expected: &[Expected]) -> Vec<ValueId> {
    let per_sample =
        |site: &Site| expected[site.value].batch.is_some() && is_integer(expected[site.value].kind);
    sites(call, expected)
        .iter()
        .filter(|site| per_sample(site))
        .map(|site| ValueId(site.value as u32))
        .collect()
}

/// A tensor that stands in for an argument, or for an element of a list argument.
pub(crate) struct Replacement {
    pub(crate) argument: usize,
    pub(crate) element: Option<usize>,
    pub(crate) tensor: Tensor,
}

/// One index tensor and its range `low..high`, or `also`.
struct Site {
    argument: usize,
    element: Option<usize>,
    value: usize,
    low: i64,
    high: i64,
    also: Option<i64>,
}

fn sites(call: &Call, expected: &[Expected]) -> Vec<Site> {
    let single = |name: &str, high: Option<i64>, also: Option<i64>| -> Vec<Site> {
        let found = call
            .position(name)
            .and_then(|argument| match call.arguments[argument] {
                Prepared::Value(value) => Some((argument, value)),
                _ => None,
            });
        match (found, high) {
            (Some((argument, value)), Some(high)) => vec![Site {
                argument,
                element: None,
                value,
                low: 0,
                high,
                also,
            }],
            _ => Vec::new(),
        }
    };
    match call.guard {
        Guard::Never | Guard::Random | Guard::Draw | Guard::Attention | Guard::Recurrent => Vec::new(),
        Guard::Gather => single(
            "index",
            call.int("dim").and_then(|dim| call.extent("self", dim, expected)),
            None,
        ),
        Guard::Embedding => single("indices", call.extent("weight", 0, expected), None),
        Guard::OneHot => single("self", call.int("num_classes"), None),
        Guard::Classes => {
            let rank = call.shape("self", expected).map_or(1, <[i64]>::len);
            single(
                "target",
                call.extent("self", i64::from(rank > 1), expected),
                call.int("ignore_index"),
            )
        }
        Guard::Index => index_sites(call, expected),
    }
}

fn index_sites(call: &Call, expected: &[Expected]) -> Vec<Site> {
    let Some(argument) = call.position("indices") else {
        return Vec::new();
    };
    let Prepared::OptionalValues(list) = &call.arguments[argument] else {
        return Vec::new();
    };
    list.iter()
        .enumerate()
        .filter_map(|(element, value)| {
            let high = call.extent("self", element as i64, expected)?;
            Some(Site {
                argument,
                element: Some(element),
                value: (*value)?,
                low: -high,
                high,
                also: None,
            })
        })
        .collect()
}

fn is_integer(kind: Kind) -> bool {
    matches!(kind, Kind::Uint8 | Kind::Int | Kind::Int64)
}

impl Call {
    /// Position of an argument by its schema name.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.argument_names.iter().position(|argument| argument == name)
    }

    fn int(&self, name: &str) -> Option<i64> {
        match self.arguments[self.position(name)?] {
            Prepared::Int(value) => Some(value),
            _ => None,
        }
    }

    fn shape<'a>(&self, name: &str, expected: &'a [Expected]) -> Option<&'a [i64]> {
        match self.arguments[self.position(name)?] {
            Prepared::Value(value) => Some(&expected[value].shape),
            _ => None,
        }
    }

    fn extent(&self, name: &str, dim: i64, expected: &[Expected]) -> Option<i64> {
        let shape = self.shape(name, expected)?;
        let dim = if dim < 0 { dim + shape.len() as i64 } else { dim };
        shape.get(usize::try_from(dim).ok()?).copied()
    }
}
