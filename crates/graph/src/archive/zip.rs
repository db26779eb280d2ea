//! Stored ZIP members (APPNOTE.TXT 6.3): just what `torch.export.save` writes, nothing else.
//!
//! Refused: compression, encryption, archives over 4 GiB, comments, repeated or odd names, a central
//! directory that contradicts a local header, wrong checksums, more member bytes than archive bytes.

use super::ArchiveError;
use super::crc::crc32;
use std::collections::BTreeMap;
use std::ops::Range;

const END_BYTES: usize = 22;
const CENTRAL_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;

/// Members by their path below the root folder.
pub(super) struct Members<'a> {
    archive: &'a [u8],
    members: BTreeMap<String, Range<usize>>,
}

fn contradicted() -> ArchiveError {
    ArchiveError::Zip("the central directory does not describe the file".into())
}

impl<'a> Members<'a> {
    /// Reads the central directory and every member's range.
    pub(super) fn read(bytes: &'a [u8], max_members: usize) -> Result<Self, ArchiveError> {
        let directory = Directory::find(bytes)?;
        if directory.entries > max_members {
            let (found, limit) = (directory.entries as u64, max_members as u64);
            return Err(ArchiveError::Limit {
                what: "archive members",
                found,
                limit,
            });
        }
        let mut members = BTreeMap::new();
        let (mut rest, mut root, mut total) = (directory.bytes, None, 0usize);
        for _ in 0..directory.entries {
            let entry = CentralEntry::read(&mut rest)?;
            // Before any checksum: members that overlap would have the file read once for each.
            total = total.saturating_add(entry.length);
            if total > bytes.len() {
                return Err(contradicted());
            }
            let range = entry.range(bytes)?;
            let path = below_root(&entry.name, &mut root)?;
            if members.insert(path, range).is_some() {
                return Err(member(&entry.name, "appears twice"));
            }
        }
        if !rest.is_empty() {
            return Err(contradicted());
        }
        let members = Self {
            archive: bytes,
            members,
        };
        members.check_names()?;
        Ok(members)
    }

    /// A JSON member.
    pub(super) fn json(&self, path: &str, limit: u64) -> Result<&'a [u8], ArchiveError> {
        let bytes = self.get(path).ok_or_else(|| member(path, "is missing"))?;
        let found = bytes.len() as u64;
        if found > limit {
            return Err(ArchiveError::Limit {
                what: "bytes of JSON in one member",
                found,
                limit,
            });
        }
        Ok(bytes)
    }

    /// Any member, by its path below the root folder.
    pub(super) fn get(&self, path: &str) -> Option<&'a [u8]> {
        self.members.get(path).map(|range| &self.archive[range.clone()])
    }

    /// Where whole storages of weights and constants are in the archive.
    pub(super) fn storages(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let of_tensors = |path: &str| {
            let folders = ["data/weights/", "data/constants/"];
            folders.iter().any(|folder| path.starts_with(folder)) && !path.ends_with(".json")
        };
        let found = self.members.iter().filter(move |(path, _)| of_tensors(path));
        found.map(|(_, range)| range.clone())
    }

    fn check_names(&self) -> Result<(), ArchiveError> {
        for (path, range) in &self.members {
            let bytes = &self.archive[range.clone()];
            let expected = match path.as_str() {
                "archive_format" => Some("pt2"),
                "byteorder" => Some("little"),
                _ => None,
            };
            if expected.is_some_and(|expected| bytes != expected.as_bytes()) {
                return Err(member(
                    path,
                    "has an unexpected content: only little-endian .pt2 archives are read",
                ));
            }
            if !is_known(path) {
                return Err(member(path, "has no place in a .pt2 archive of one model"));
            }
        }
        Ok(())
    }
}

/// The paths `torch.export.save` writes; the sample inputs (a pickle) may be there but are never read.
fn is_known(path: &str) -> bool {
    const EXACT: [&str; 8] = [
        "archive_format",
        "archive_version",
        "byteorder",
        "version",
        ".data/version",
        ".data/serialization_id",
        "models/model.json",
        "data/sample_inputs/model.pt",
    ];
    let plain_file = |folder: &str| path.strip_prefix(folder).is_some_and(|file| !file.contains('/'));
    EXACT.contains(&path) || plain_file("data/weights/") || plain_file("data/constants/")
}

fn below_root(name: &str, root: &mut Option<String>) -> Result<String, ArchiveError> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if name.contains(['\\', ':', '\0']) || !name.split('/').all(plain) {
        return Err(member(name, "is not a plain relative path"));
    }
    let (folder, path) = name
        .split_once('/')
        .ok_or_else(|| member(name, "is outside of the root folder"))?;
    if root.get_or_insert_with(|| folder.to_owned()) != folder {
        return Err(member(name, "is in a second root folder"));
    }
    Ok(path.to_owned())
}

struct Directory<'a> {
    bytes: &'a [u8],
    entries: usize,
}

impl<'a> Directory<'a> {
    fn find(bytes: &'a [u8]) -> Result<Self, ArchiveError> {
        let broken = |reason: &str| ArchiveError::Zip(reason.into());
        let start = bytes
            .len()
            .checked_sub(END_BYTES)
            .ok_or_else(|| broken("too short"))?;
        let end = &bytes[start..];
        if end[..4] != *b"PK\x05\x06" || u16_at(end, 20) != 0 {
            return Err(broken("no ZIP end record at its end (cut short?)"));
        }
        let (disk, entries) = (u16_at(end, 4), u16_at(end, 10));
        if disk != 0 || u16_at(end, 6) != 0 || u16_at(end, 8) != entries || entries == u16::MAX {
            return Err(broken("several disks or too many members"));
        }
        let (length, offset) = (u32_at(end, 12) as usize, u32_at(end, 16) as usize);
        let stop = offset.checked_add(length).filter(|&stop| stop <= start);
        let stop = stop.ok_or_else(|| broken("its central directory is outside of the file"))?;
        Ok(Self {
            bytes: &bytes[offset..stop],
            entries: usize::from(entries),
        })
    }
}

struct CentralEntry {
    name: String,
    crc: u32,
    length: usize,
    local_offset: usize,
}

impl CentralEntry {
    fn read(rest: &mut &[u8]) -> Result<Self, ArchiveError> {
        let cut = || ArchiveError::Zip("its central directory is cut short".into());
        let head = rest.get(..CENTRAL_BYTES).ok_or_else(cut)?;
        if head[..4] != *b"PK\x01\x02" {
            return Err(ArchiveError::Zip("its central directory is malformed".into()));
        }
        let name_end = CENTRAL_BYTES + usize::from(u16_at(head, 28));
        let stop = name_end + usize::from(u16_at(head, 30)) + usize::from(u16_at(head, 32));
        let name = rest.get(CENTRAL_BYTES..name_end).ok_or_else(cut)?;
        let name =
            String::from_utf8(name.to_vec()).map_err(|_| ArchiveError::Zip("a name is not UTF-8".into()))?;
        let (compressed, length) = (u32_at(head, 20), u32_at(head, 24));
        if u16_at(head, 10) != 0 || compressed != length {
            return Err(member(
                &name,
                "is compressed; torch.export.save stores members as they are",
            ));
        }
        if u16_at(head, 8) & 1 != 0 {
            return Err(member(&name, "is encrypted"));
        }
        if [compressed, u32_at(head, 42)].contains(&u32::MAX) {
            return Err(member(&name, "needs ZIP64; archives stay below 4 GiB"));
        }
        *rest = rest.get(stop..).ok_or_else(cut)?;
        Ok(Self {
            name,
            crc: u32_at(head, 16),
            length: length as usize,
            local_offset: u32_at(head, 42) as usize,
        })
    }

    /// Of its bytes, whose checksum is right.
    fn range(&self, bytes: &[u8]) -> Result<Range<usize>, ArchiveError> {
        let outside = || member(&self.name, "is outside of the file");
        let local = bytes.get(self.local_offset..).ok_or_else(outside)?;
        let head = local.get(..LOCAL_BYTES).ok_or_else(outside)?;
        let name_end = LOCAL_BYTES + usize::from(u16_at(head, 26));
        let start = name_end + usize::from(u16_at(head, 28));
        let same_name = local.get(LOCAL_BYTES..name_end) == Some(self.name.as_bytes());
        if head[..4] != *b"PK\x03\x04" || !same_name || u16_at(head, 8) != 0 {
            return Err(member(
                &self.name,
                "has a local header that contradicts the directory",
            ));
        }
        let stop = start.checked_add(self.length).ok_or_else(outside)?;
        let data = local.get(start..stop).ok_or_else(outside)?;
        if crc32(data) != self.crc {
            return Err(member(&self.name, "is damaged: its checksum is wrong"));
        }
        let start = self.local_offset + start;
        Ok(start..start + self.length)
    }
}

pub(super) fn member(name: &str, reason: &str) -> ArchiveError {
    ArchiveError::Member {
        member: name.to_owned(),
        reason: reason.to_owned(),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
