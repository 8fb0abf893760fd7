//! Container images without a registry: local files packed as an archive that containerd imports and
//! Docker loads.
//!
//! Format: <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>; containerd takes an
//! image's name from the annotation `io.containerd.image.name` of its entry in the index. Docker before
//! 25 reads `manifest.json` in its place, which names the same files:
//! <https://github.com/moby/docker-image-spec/blob/main/spec.md>.

use crate::process;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The architecture as OCI calls it.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// An image to be packed.
pub struct Image {
    /// As Pods name it.
    pub name: String,
    /// Path in the image and the file that goes there.
    pub files: Vec<(String, PathBuf)>,
    /// What a container runs unless its Pod says otherwise.
    pub entrypoint: Vec<String>,
    /// Its arguments, unless the Pod gives some.
    pub arguments: Vec<String>,
    /// Who runs it unless its Pod says otherwise, `UID:GID`; root without one.
    pub user: Option<String>,
}

/// Packs `images` into the archive `out`, each on top of the file system `base`, a tar archive that they
/// share.
///
/// # Errors
/// Names the file or command that failed.
pub fn pack(out: &Path, base: Option<&Path>, images: &[Image]) -> Result<()> {
    let layout = Layout::new(out.with_extension("layout"))?;
    let base = base.map(|base| layout.layer(base)).transpose()?;
    let mut manifests = Vec::new();
    let mut for_docker = Vec::new();
    for image in images {
        let mut layers: Vec<Blob> = base.iter().cloned().collect();
        if !image.files.is_empty() {
            layers.push(layout.layer(&layout.archive(&image.files)?)?);
        }
        let config = layout.config(image, &layers)?;
        for_docker.push(json!({
            "Config": config.path(),
            "RepoTags": [image.name],
            "Layers": layers.iter().map(Blob::path).collect::<Vec<_>>(),
        }));
        manifests.push(layout.manifest(image, &config, &layers)?);
    }
    layout.write("manifest.json", &Value::Array(for_docker))?;
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    layout.write("index.json", &index)?;
    layout.write("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))?;
    let partial = out.with_extension("partial");
    tar(&layout.folder.join("layout"), &partial)?;
    fs::rename(&partial, out).with_context(|| format!("create {}", out.display()))
}

/// The SHA-256 of a file in hexadecimal digits.
///
/// # Errors
/// When it can't be read.
pub fn sha256(file: &Path) -> Result<String> {
    let line = process::output(Command::new("sha256sum").arg(file))?;
    let digest = line.split_whitespace().next();
    digest.map(str::to_owned).with_context(|| format!("sha256sum {} is silent", file.display()))
}

/// Packs a folder; the same files give the same archive whoever made them and when.
fn tar(folder: &Path, out: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.arg("-C").arg(folder).arg("-cf").arg(out).arg(".");
    process::output(&mut tar).map(drop)
}

/// Something that the layout holds under its digest.
#[derive(Clone)]
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    /// Where it lies in the layout.
    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.size })
    }
}

/// A layout that is being written, removed when dropped.
struct Layout {
    folder: PathBuf,
}

impl Layout {
    fn new(folder: PathBuf) -> Result<Self> {
        let _ = fs::remove_dir_all(&folder);
        let blobs = folder.join("layout/blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
        Ok(Self { folder })
    }

    fn write(&self, name: &str, content: &Value) -> Result<()> {
        let path = self.folder.join("layout").join(name);
        fs::write(&path, content.to_string()).with_context(|| format!("write {}", path.display()))
    }

    /// Adds a file that is one layer; the file stays where it is.
    fn layer(&self, file: &Path) -> Result<Blob> {
        let digest = sha256(file)?;
        let blob = self.folder.join("layout/blobs/sha256").join(&digest);
        let size = file.metadata().with_context(|| format!("read {}", file.display()))?.len();
        // Not copied where both are on one file system.
        if !blob.exists() && fs::hard_link(file, &blob).is_err() {
            fs::copy(file, &blob).with_context(|| format!("create {}", blob.display()))?;
        }
        Ok(Blob { digest: format!("sha256:{digest}"), size })
    }

    fn document(&self, content: &Value) -> Result<Blob> {
        let draft = self.folder.join("document");
        fs::write(&draft, content.to_string())
            .with_context(|| format!("write {}", draft.display()))?;
        let blob = self.layer(&draft)?;
        // Removed, not written over: the blob may be the same file.
        fs::remove_file(&draft).with_context(|| format!("remove {}", draft.display()))?;
        Ok(blob)
    }

    /// The archive of one layer with `files`.
    fn archive(&self, files: &[(String, PathBuf)]) -> Result<PathBuf> {
        let root = self.folder.join("root");
        let _ = fs::remove_dir_all(&root);
        for (path, source) in files {
            let target = root.join(path.trim_start_matches('/'));
            let parent = target.parent().unwrap_or(&root);
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
            fs::copy(source, &target).with_context(|| format!("copy {}", source.display()))?;
        }
        let archive = self.folder.join("layer.tar");
        let _ = fs::remove_file(&archive);
        tar(&root, &archive)?;
        Ok(archive)
    }

    /// Adds the configuration of an image.
    fn config(&self, image: &Image, layers: &[Blob]) -> Result<Blob> {
        let digests: Vec<_> = layers.iter().map(|layer| &layer.digest).collect();
        self.document(&json!({
            "architecture": ARCHITECTURE,
            "os": "linux",
            "config": {
                "User": image.user.as_deref().unwrap_or_default(),
                "Entrypoint": image.entrypoint,
                "Cmd": image.arguments,
                "Env": ["PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin:/"],
            },
            "rootfs": { "type": "layers", "diff_ids": digests },
        }))
    }

    /// Adds the manifest of an image; its entry in the index.
    fn manifest(&self, image: &Image, config: &Blob, layers: &[Blob]) -> Result<Value> {
        let layer = "application/vnd.oci.image.layer.v1.tar";
        let layers: Vec<_> = layers.iter().map(|blob| blob.descriptor(layer)).collect();
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = self.document(&json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": layers,
        }))?;
        let mut entry = manifest.descriptor(manifest_type);
        entry["annotations"] = json!({
            "io.containerd.image.name": image.name,
            "org.opencontainers.image.ref.name": image.name,
        });
        Ok(entry)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // What stays is overwritten by the next run.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_every_image_under_its_name_and_a_shared_layer_once() {
        let folder = std::env::temp_dir().join(format!("lb-xtask-oci-{}", std::process::id()));
        fs::create_dir_all(folder.join("base")).expect("a folder");
        fs::write(folder.join("base/program"), "#!/bin/sh\n").expect("a file");
        tar(&folder.join("base"), &folder.join("base.tar")).expect("a base");
        let image = |name: &str| Image {
            name: name.to_owned(),
            files: vec![("/bin/program".to_owned(), folder.join("base/program"))],
            entrypoint: vec!["/bin/program".to_owned()],
            arguments: Vec::new(),
            user: Some("65532:65532".to_owned()),
        };
        let out = folder.join("images.tar");
        pack(&out, Some(&folder.join("base.tar")), &[image("a:1"), image("b:1")]).expect("packed");
        let list = process::output(Command::new("tar").arg("-tf").arg(&out)).expect("a list");
        let blobs =
            list.lines().filter(|line| line.starts_with("./blobs/sha256/") && line.len() > 20);
        // The base, one layer, one configuration and one manifest: both images are the same but for
        // their names, which stand in the index.
        assert_eq!(blobs.count(), 4, "{list}");
        let read = |file: &str| -> Value {
            let mut read = Command::new("tar");
            read.arg("-xOf").arg(&out).arg(format!("./{file}"));
            serde_json::from_str(&process::output(&mut read).expect(file)).expect("JSON")
        };
        let index = read("index.json");
        let names: Vec<_> = index["manifests"]
            .as_array()
            .expect("entries")
            .iter()
            .map(|entry| entry["annotations"]["io.containerd.image.name"].as_str())
            .collect();
        assert_eq!(names, [Some("a:1"), Some("b:1")]);
        let for_docker = read("manifest.json");
        assert_eq!(for_docker[1]["RepoTags"], json!(["b:1"]));
        let config = for_docker[1]["Config"].as_str().expect("a path");
        assert_eq!(read(config)["config"]["User"], "65532:65532");
        for layer in for_docker[1]["Layers"].as_array().expect("layers") {
            let path = format!("./{}", layer.as_str().expect("a path"));
            assert!(list.lines().any(|line| line == path), "{path} is not in the archive");
        }
        fs::remove_dir_all(&folder).expect("the folder is ours to remove");
    }
}
