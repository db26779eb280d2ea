//! Length-prefixed fields: the one encoding behind claims, bindings and simulated evidence.
//!
//! Every field is `u32 LE length ‖ bytes`, so no two different field lists encode alike (rule A6).

/// Appends fields to a byte string.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds one field. Callers cap field sizes far below `u32::MAX`.
    pub(crate) fn field(mut self, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).expect("fields are capped below 4 GiB");
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Why bytes are not a list of the expected fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("field `{0}` is truncated")]
    Truncated(&'static str),
    #[error("field `{field}` has {found} bytes, at most {most} are allowed")]
    TooLong {
        field: &'static str,
        found: usize,
        most: usize,
    },
    #[error("field `{field}` has {found} bytes, exactly {wanted} are needed")]
    WrongLength {
        field: &'static str,
        found: usize,
        wanted: usize,
    },
    #[error("{0} bytes follow the last field")]
    Trailing(usize),
}

/// Reads fields in order; never allocates more than the input holds.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn field(&mut self, name: &'static str, most: usize) -> Result<&'a [u8], DecodeError> {
        let (prefix, rest) = self
            .0
            .split_first_chunk::<4>()
            .ok_or(DecodeError::Truncated(name))?;
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > most {
            return Err(DecodeError::TooLong {
                field: name,
                found: length,
                most,
            });
        }
        let (value, rest) = rest
            .split_at_checked(length)
            .ok_or(DecodeError::Truncated(name))?;
        self.0 = rest;
        Ok(value)
    }

    pub(crate) fn array<const N: usize>(&mut self, name: &'static str) -> Result<[u8; N], DecodeError> {
        let value = self.field(name, usize::MAX)?;
        value.try_into().map_err(|_| DecodeError::WrongLength {
            field: name,
            found: value.len(),
            wanted: N,
        })
    }

    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing(self.0.len()))
        }
    }
}
