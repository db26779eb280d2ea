//! `bastionai release-manifest`: the reference values of a release, signed by its maker.

use super::measure::Measured;
use crate::output;
use anyhow::{Context, bail};
use bastionai_attestation::reference::{Hex, PcrReference, ReferenceSet};
use bastionai_attestation::{Artifact, ReleaseManifest};
use bastionai_client::Identity;
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct ReleaseManifestArguments {
    /// The secret key that signs, made by `bastionai keygen` for this purpose alone.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Where to write the manifest; an existing file is never overwritten.
    #[arg(long, short, value_name = "FILE", default_value = "release.dsse.json")]
    out: PathBuf,
    /// Version of the release, e.g. 0.1.0.
    #[arg(long, value_name = "VERSION")]
    release: String,
    /// Revision of the source that it was made from, e.g. `git rev-parse HEAD`.
    #[arg(long, value_name = "TEXT")]
    source_revision: String,
    /// A file of the release; its name and SHA-256 are in the manifest (repeatable).
    #[arg(long, required = true, value_name = "FILE")]
    artifact: Vec<PathBuf>,
    /// What `bastionai measure … --json` printed (repeatable).
    #[arg(long, value_name = "FILE")]
    measured: Vec<PathBuf>,
    /// A PCR of guests with a vTPM, from a reference boot: its index, `=`, 64 hex digits (repeatable, together one shape).
    #[arg(long, value_name = "INDEX=HEX", value_parser = pcr)]
    pcr: Vec<(u8, Hex<32>)>,
    /// SHA-256 of a trainer program (repeatable).
    #[arg(long, value_name = "HEX")]
    trainer_digest: Vec<Hex<32>>,
    /// SHA-256 over the libtorch libraries, as a server of the release shows it in `bastionai appraise` (repeatable).
    #[arg(long, value_name = "HEX")]
    libtorch_digest: Vec<Hex<32>>,
    /// SHA-256 of an effective configuration, as a server shows it (repeatable).
    #[arg(long, value_name = "HEX")]
    configuration_digest: Vec<Hex<32>>,
}

/// Collects, signs, writes; prints the key that relying parties name.
pub(crate) fn run(arguments: &ReleaseManifestArguments, json: bool) -> anyhow::Result<()> {
    let out = &arguments.out;
    if out.exists() {
        bail!("{} exists already: name a new file with --out", out.display());
    }
    let identity = Identity::load(&arguments.key)
        .context("no usable key; make one with `bastionai keygen --out release.pem`")?;
    let manifest = ReleaseManifest {
        artifacts: arguments
            .artifact
            .iter()
            .map(|path| artifact(path))
            .collect::<anyhow::Result<_>>()?,
        version: arguments.release.clone(),
        source_revision: arguments.source_revision.clone(),
        reference_values: values(arguments)?,
    };
    let public_key = identity.public_key();
    let signed = manifest.sign(&public_key, |message| identity.sign(message))?;
    // What relying parties will do, once here: a manifest that nobody can read is no manifest.
    let verified = ReleaseManifest::verify(&signed, &public_key)?;
    std::fs::write(out, &signed).with_context(|| format!("cannot write {}", out.display()))?;
    if json {
        return output::json(&serde_json::json!({
            "file": out,
            "manifest_sha256": hex::encode(verified.sha256()),
            "manifest_key": hex::encode(public_key),
            "reference_values": verified.manifest().reference_values,
        }));
    }
    eprintln!(
        "wrote {}; whoever trusts this key names it with --manifest-key:",
        out.display()
    );
    println!("{}", hex::encode(public_key));
    Ok(())
}

fn values(arguments: &ReleaseManifestArguments) -> anyhow::Result<ReferenceSet> {
    let mut pcrs = BTreeMap::new();
    for (index, value) in &arguments.pcr {
        if pcrs.insert(*index, *value).is_some() {
            bail!("--pcr {index} is given twice: one manifest entry has one value of a PCR");
        }
    }
    let own = ReferenceSet {
        vtpm: if pcrs.is_empty() {
            vec![]
        } else {
            vec![PcrReference { pcrs }]
        },
        trainer_digests: arguments.trainer_digest.clone(),
        libtorch_digests: arguments.libtorch_digest.clone(),
        configuration_digests: arguments.configuration_digest.clone(),
        ..ReferenceSet::default()
    };
    arguments.measured.iter().try_fold(own, |values, path| {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let measured: Measured = serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is not what `bastionai measure … --json` prints",
                path.display()
            )
        })?;
        Ok(values.and(measured.reference_values))
    })
}

fn artifact(path: &Path) -> anyhow::Result<Artifact> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("{} has no file name in UTF-8", path.display()))?;
    Ok(Artifact {
        name: name.to_owned(),
        sha256: sha256_of(path).with_context(|| format!("cannot read {}", path.display()))?,
    })
}

/// In pieces: images have gigabytes.
fn sha256_of(path: &Path) -> std::io::Result<[u8; 32]> {
    use sha2::Digest;
    let mut digest = sha2::Sha256::new();
    let mut file = std::fs::File::open(path)?;
    let mut piece = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut piece)? {
            0 => return Ok(digest.finalize().into()),
            length => digest.update(&piece[..length]),
        }
    }
}

fn pcr(text: &str) -> Result<(u8, Hex<32>), String> {
    let (index, value) = text
        .split_once('=')
        .ok_or_else(|| "expected INDEX=HEX".to_owned())?;
    let index = index
        .parse()
        .map_err(|_| format!("{index:?} is no index of a PCR"))?;
    Ok((index, value.parse().map_err(|error| format!("{error}"))?))
}
