//! Where an archive holds the bytes of its tensors, so that a tensor that stays the same from one archive to the next
//! (a frozen base under another head) need not be sent again.

use super::zip::Members;
use super::{ArchiveError, Limits};
use std::ops::Range;

/// Ranges of whole stored tensors of at least `least_bytes`, in the order of the archive; none overlaps another.
///
/// # Errors
/// [`ArchiveError`] when the file is no archive; what the tensors mean is not looked at.
pub fn storages(
    archive: &[u8],
    least_bytes: usize,
    limits: &Limits,
) -> Result<Vec<Range<usize>>, ArchiveError> {
    let members = Members::read(archive, limits.max_members)?;
    let mut found: Vec<_> = members
        .storages()
        .filter(|range| range.len() >= least_bytes.max(1))
        .collect();
    found.sort_unstable_by_key(|range| (range.start, range.end));
    let mut end = 0;
    found.retain(|range| {
        let apart = range.start >= end;
        if apart {
            end = range.end;
        }
        apart
    });
    Ok(found)
}
