//! A model archive that is arriving: its own bytes, and the names of tensors that its owner sent before.
//!
//! A named tensor costs a name to send and up to a model's bytes to copy, so nothing is copied before the upload is
//! whole: one that is given up, or never meant to end, has cost what it sent. Nor is the named model kept from making
//! room meanwhile: many slow uploads would pin more than the server holds.

use crate::errors::{Failure, Reason};
use crate::models::Models;
use bastionai_ledger::Principal;

/// Parts in the order they came in, never longer together than was announced.
pub(crate) struct PartialArchive {
    parts: Vec<Part>,
    bytes: u64,
    announced_bytes: u64,
}

enum Part {
    Own(Vec<u8>),
    /// By the SHA-256 of the tensor's bytes.
    Held(Vec<u8>),
}

impl PartialArchive {
    pub(crate) fn new(announced_bytes: u64) -> Self {
        Self {
            parts: Vec::new(),
            bytes: 0,
            announced_bytes,
        }
    }

    /// # Errors
    /// [`Reason::UploadIncomplete`] when it is longer than announced.
    pub(crate) fn push_own(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        self.grow(chunk.len() as u64)?;
        // Small chunks must not cost a part each. Grows with what arrives, not with what was promised.
        match self.parts.last_mut() {
            Some(Part::Own(own)) => own.extend_from_slice(chunk),
            _ => self.parts.push(Part::Own(chunk.to_vec())),
        }
        Ok(())
    }

    /// # Errors
    /// [`Reason::UnknownModel`] when no model of the owner's stores such a tensor, [`Reason::UploadIncomplete`] when
    /// it makes the archive longer than announced.
    pub(crate) fn push_held(
        &mut self,
        models: &Models,
        owner: Principal,
        digest: Vec<u8>,
    ) -> Result<(), Failure> {
        self.grow(models.storage(owner, &digest)?.bytes().len() as u64)?;
        self.parts.push(Part::Held(digest));
        Ok(())
    }

    fn grow(&mut self, bytes: u64) -> Result<(), Failure> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.announced_bytes {
            let message = "the archive is longer than its header says";
            return Err(Failure::new(Reason::UploadIncomplete, message));
        }
        Ok(())
    }

    /// Whether all that was announced is there.
    ///
    /// # Errors
    /// [`Reason::UploadIncomplete`] when something is missing.
    pub(crate) fn check_whole(&self) -> Result<(), Failure> {
        if self.bytes == self.announced_bytes {
            return Ok(());
        }
        let message = format!(
            "the archive ended after {} of {} bytes; nothing was kept",
            self.bytes, self.announced_bytes
        );
        Err(Failure::new(Reason::UploadIncomplete, message))
    }

    /// The archive's bytes. Copies them: not for a thread that others wait for.
    ///
    /// # Errors
    /// [`Reason::UnknownModel`] when a model whose tensor was named had to make room meanwhile.
    pub(crate) fn assemble(self, models: &Models, owner: Principal) -> Result<Vec<u8>, Failure> {
        let mut parts = self.parts.into_iter();
        let mut archive = match parts.next() {
            Some(Part::Own(own)) => own,
            Some(held) => copied(Vec::new(), held, models, owner)?,
            None => Vec::new(),
        };
        for part in parts {
            archive = copied(archive, part, models, owner)?;
        }
        Ok(archive)
    }
}

/// The archive so far with one more part, which is freed.
fn copied(mut archive: Vec<u8>, part: Part, models: &Models, owner: Principal) -> Result<Vec<u8>, Failure> {
    match part {
        Part::Own(own) => archive.extend_from_slice(&own),
        // The digest is of these bytes, so their number is the one that was counted.
        Part::Held(digest) => archive.extend_from_slice(models.storage(owner, &digest)?.bytes()),
    }
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Model;
    use sha2::{Digest, Sha256};

    const OWNER: Principal = Principal::from_bytes([1; 32]);
    const FROZEN: &[u8] = include_bytes!("../tests/fixtures/frozen_one.pt2");

    /// An archive, where its frozen base is, and the base's digest.
    fn frozen() -> (std::ops::Range<usize>, Vec<u8>) {
        let ranges = bastionai_graph::archive::storages(FROZEN, 4096, &Default::default()).unwrap();
        let base = ranges[0].clone();
        (base.clone(), Sha256::digest(&FROZEN[base]).to_vec())
    }

    fn holding(total_bytes: u64) -> Models {
        let models = Models::new(total_bytes);
        let digest: [u8; 32] = Sha256::digest(FROZEN).into();
        models.insert(OWNER, Model::new(digest, FROZEN.to_vec()).unwrap());
        models
    }

    fn with_base_named(models: &Models) -> PartialArchive {
        let (base, digest) = frozen();
        let mut partial = PartialArchive::new(FROZEN.len() as u64);
        for chunk in FROZEN[..base.start].chunks(7) {
            partial.push_own(chunk).unwrap();
        }
        partial.push_held(models, OWNER, digest).unwrap();
        partial.push_own(&FROZEN[base.end..]).unwrap();
        partial
    }

    #[test]
    fn own_bytes_and_named_tensors_make_the_archive_and_small_chunks_are_one_part() {
        let models = holding(1 << 20);
        let partial = with_base_named(&models);
        assert_eq!(partial.parts.len(), 3);
        partial.check_whole().unwrap();
        assert_eq!(partial.assemble(&models, OWNER).unwrap(), FROZEN);
    }

    #[test]
    fn a_named_tensor_is_not_copied_before_the_upload_is_whole() {
        let models = holding(1 << 20);
        let (base, digest) = frozen();
        let times = 1 << 10;
        let mut partial = PartialArchive::new((base.len() * times) as u64);
        for _ in 0..times {
            partial.push_held(&models, OWNER, digest.clone()).unwrap();
        }
        let own = partial.parts.iter().map(|part| match part {
            Part::Own(own) => own.len(),
            Part::Held(digest) => digest.len(),
        });
        assert_eq!(own.sum::<usize>(), 32 * times, "of {} bytes", partial.bytes);
        assert!(
            partial.push_held(&models, OWNER, digest).is_err(),
            "longer than announced"
        );
    }

    #[test]
    fn a_model_that_had_to_make_room_meanwhile_is_asked_for_again() {
        let models = holding(FROZEN.len() as u64);
        let partial = with_base_named(&models);
        let other = include_bytes!("../tests/fixtures/mlp.pt2");
        models.insert(OWNER, Model::new([2; 32], other.to_vec()).unwrap());
        let failure = partial.assemble(&models, OWNER).err().unwrap();
        let status = tonic::Status::from(failure);
        assert!(status.message().contains("send the archive whole"), "{status:?}");
    }
}
