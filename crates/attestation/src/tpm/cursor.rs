//! Reads numbers and sized buffers in order, and says which field was wrong.

use crate::verify::VerifyError;

/// What is left to read.
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    /// What is read, for messages: `the TPM quote`.
    what: &'static str,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, what }
    }

    pub(crate) fn malformed(&self, why: impl AsRef<str>) -> VerifyError {
        VerifyError::Malformed(format!("{}: {}", self.what, why.as_ref()))
    }

    pub(crate) fn take(&mut self, field: &str, length: usize) -> Result<&'a [u8], VerifyError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| self.malformed(format!("`{field}` is truncated")))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], VerifyError> {
        let taken = self.take(field, N)?;
        Ok(taken.try_into().expect("`take` takes exactly N bytes"))
    }

    pub(crate) fn u8(&mut self, field: &str) -> Result<u8, VerifyError> {
        Ok(u8::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u16(&mut self, field: &str) -> Result<u16, VerifyError> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u32(&mut self, field: &str) -> Result<u32, VerifyError> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &str) -> Result<u64, VerifyError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// A `TPM2B_…`: a size of two bytes, and as many bytes, of which there are `most` at most.
    pub(crate) fn sized(&mut self, field: &str, most: usize) -> Result<&'a [u8], VerifyError> {
        let length = usize::from(self.u16(field)?);
        if length > most {
            return Err(self.malformed(format!(
                "`{field}` has {length} bytes, at most {most} are allowed"
            )));
        }
        self.take(field, length)
    }

    /// A number of two bytes, little-endian.
    pub(crate) fn u16_le(&mut self, field: &str) -> Result<u16, VerifyError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn finish(self) -> Result<(), VerifyError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.malformed(format!("{} bytes follow the last field", self.rest.len())))
        }
    }
}
