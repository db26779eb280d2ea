//! The records of a run, whole in memory (rule D8), and micro-batches gathered from them.

use crate::error::{EngineError, Result};
use crate::program::kind;
use bastionai_graph::dtype::DType;
use bastionai_graph::typed::Input;
use bastionai_wire::trainer::DatasetShape;
use tch::{Device, Kind, Tensor};

/// All datasets' records: one tensor for each graph input, datasets one after the other, and one zero row last
/// that fills incomplete batches.
pub struct Records {
    columns: Vec<Tensor>,
    capacity: i64,
    dtypes: Vec<DType>,
    shapes: Vec<Vec<i64>>,
}

impl Records {
    /// Zero rows for all datasets.
    ///
    /// # Errors
    /// [`EngineError::Job`] when the sizes overflow, [`EngineError::Torch`] when memory is short.
    pub fn new(inputs: &[Input], datasets: &[DatasetShape]) -> Result<Self> {
        let too_large = || EngineError::Job("the datasets are too large to address".into());
        let mut capacity = 0i64;
        for dataset in datasets {
            let rows = i64::try_from(dataset.capacity).map_err(|_| too_large())?;
            capacity = capacity.checked_add(rows).ok_or_else(too_large)?;
            if dataset.rows > dataset.capacity {
                return Err(EngineError::Job(
                    "a dataset has more rows than its capacity".into(),
                ));
            }
        }
        let mut records = Self {
            columns: Vec::new(),
            capacity,
            dtypes: Vec::new(),
            shapes: Vec::new(),
        };
        for input in inputs {
            let shape: Vec<i64> = input.shape.iter().map(|&extent| extent as i64).collect();
            let whole: Vec<i64> = std::iter::once(capacity + 1)
                .chain(shape.iter().copied())
                .collect();
            records
                .columns
                .push(Tensor::f_zeros(&whole[..], (kind(input.dtype), Device::Cpu))?);
            records.dtypes.push(input.dtype);
            records.shapes.push(shape);
        }
        Ok(records)
    }

    /// Bytes of `rows` rows of an input.
    pub fn bytes_of(&self, input: usize, rows: u64) -> u64 {
        let elements: i64 = self.shapes[input].iter().product();
        rows * elements as u64 * self.dtypes[input].size_bytes() as u64
    }

    /// Copies a dataset's column to rows `offset..offset + rows`. Any non-zero byte of a bool is true.
    ///
    /// # Errors
    /// [`EngineError::Job`] when the bytes are not `rows` rows.
    pub fn fill(&mut self, input: usize, offset: u64, rows: u64, bytes: &[u8]) -> Result<()> {
        if self.bytes_of(input, rows) != bytes.len() as u64 {
            return Err(EngineError::Job(
                "a column frame does not have its dataset's size".into(),
            ));
        }
        let shape: Vec<i64> = std::iter::once(rows as i64)
            .chain(self.shapes[input].iter().copied())
            .collect();
        let source = match self.dtypes[input] {
            DType::Bool => Tensor::f_from_data_size(bytes, &shape, Kind::Uint8)?.f_ne(0)?,
            dtype => Tensor::f_from_data_size(bytes, &shape, kind(dtype))?,
        };
        let mut target = self.columns[input].f_narrow(0, offset as i64, rows as i64)?;
        target.f_copy_(&source)?;
        Ok(())
    }

    /// One row for each place, the zero row for padding. Returns the inputs and which places hold records.
    ///
    /// # Errors
    /// [`EngineError::Torch`] when memory is short.
    pub fn gather(&self, places: &[Option<u64>]) -> Result<(Vec<Tensor>, Tensor)> {
        let indices: Vec<i64> = places
            .iter()
            .map(|place| place.map_or(self.capacity, |row| row as i64))
            .collect();
        let present: Vec<bool> = places.iter().map(Option::is_some).collect();
        let indices = Tensor::f_from_slice(&indices)?;
        let inputs = self
            .columns
            .iter()
            .map(|column| Ok(column.f_index_select(0, &indices)?))
            .collect::<Result<_>>()?;
        Ok((inputs, Tensor::f_from_slice(&present)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Records {
        let inputs = [
            Input {
                column: "x".into(),
                dtype: DType::F32,
                shape: vec![2],
            },
            Input {
                column: "flag".into(),
                dtype: DType::Bool,
                shape: vec![],
            },
        ];
        let datasets = [
            DatasetShape { capacity: 2, rows: 1 },
            DatasetShape { capacity: 2, rows: 2 },
        ];
        let mut records = Records::new(&inputs, &datasets).unwrap();
        let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        records.fill(0, 2, 2, &bytes).unwrap();
        records.fill(1, 2, 2, &[0, 7]).unwrap();
        records
    }

    #[test]
    fn places_without_a_record_hold_zero_rows() {
        let (inputs, present) = records().gather(&[None, Some(3), None]).unwrap();
        assert_eq!(
            Vec::<f32>::try_from(inputs[0].flatten(0, -1)).unwrap(),
            [0.0, 0.0, 3.0, 4.0, 0.0, 0.0]
        );
        assert_eq!(Vec::<bool>::try_from(&inputs[1]).unwrap(), [false, true, false]);
        assert_eq!(Vec::<bool>::try_from(&present).unwrap(), [false, true, false]);
    }

    #[test]
    fn frames_of_another_size_are_refused() {
        assert!(records().fill(0, 0, 2, &[0; 15]).is_err());
        assert!(records().fill(1, 0, 2, &[0; 3]).is_err());
    }
}
