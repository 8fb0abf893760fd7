//! The image that nodes are made of, built when what it consists of has changed.

use super::debian::Debian;
use super::docker::Docker;
use super::programs::Programs;
use crate::oci::{self, Image, sha256};
use crate::{process, workspace};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const REPOSITORY: &str = "lb-e2e/node";
const BASE: &str = "lb-e2e/debian";
/// Files of kind's base image that a node needs, below `images/base/files` of its sources.
const KIND_FILES: [&str; 4] = ["etc", "kind", "usr/local/bin/entrypoint", "LICENSES"];
/// Where a node has its programs.
const PROGRAMS: [(&str, &str); 10] = [
    ("usr/bin", "kubelet"),
    ("usr/bin", "kubeadm"),
    ("usr/bin", "kubectl"),
    ("usr/local/bin", "containerd"),
    ("usr/local/bin", "containerd-shim-runc-v2"),
    ("usr/local/bin", "ctr"),
    ("opt/cni/bin", "host-local"),
    ("opt/cni/bin", "loopback"),
    ("opt/cni/bin", "ptp"),
    ("opt/cni/bin", "portmap"),
];
/// Our own files of the image.
const OWN: [&str; 3] = ["Dockerfile", "prepare", "lb-images.service"];

/// Part of the version: what this code makes of the files changes with it.
const RECIPE: [&str; 2] = [include_str!("node_image.rs"), include_str!("../oci.rs")];

/// The name of the node image in `docker`, built there if it is missing.
///
/// # Errors
/// Names the file or command that failed.
pub fn get(docker: &Docker, debian: &Debian, programs: &Programs) -> Result<String> {
    let cache = workspace::cache_dir("e2e")?;
    let version = version(&cache, debian, programs)?;
    let name = format!("{REPOSITORY}:{version}");
    if docker.has_image(&name) {
        return Ok(name);
    }
    let base = format!("{BASE}:{}", debian.version);
    if !docker.has_image(&base) {
        docker.call(&["import", &debian.archive.display().to_string(), &base])?;
    }
    let kubeadm = kubeadm_images(programs)?;
    let pause = named(&kubeadm, "pause")?.concat();
    let context = cache.join("node-context");
    // Of a run that was interrupted.
    let _ = fs::remove_dir_all(&context);
    fill(&context, programs)?;
    let images = images(&kubeadm, &e2e_images(programs)?, programs)?;
    oci::pack(&context.join("images.tar"), Some(&debian.archive), &images)?;
    docker.build(&context, &[("BASE", &base), ("PAUSE", &pause)], &name)?;
    fs::remove_dir_all(&context).with_context(|| format!("remove {}", context.display()))?;
    remove_others(docker, &name)?;
    Ok(name)
}

/// Names everything that the image is made of.
fn version(cache: &Path, debian: &Debian, programs: &Programs) -> Result<String> {
    let mut parts = RECIPE.join("");
    parts.push_str(&debian.version);
    for file in programs.pins().into_iter().chain(OWN.map(own_file)) {
        parts.push_str(&sha256(&file)?);
    }
    let list = cache.join("node.parts");
    fs::write(&list, parts).with_context(|| format!("write {}", list.display()))?;
    Ok(sha256(&list)?.get(..16).context("a short digest")?.to_owned())
}

fn own_file(name: &str) -> PathBuf {
    workspace::root().join("tests/e2e/node").join(name)
}

/// Puts everything but the archive of images into the folder that the image is built from.
fn fill(context: &Path, programs: &Programs) -> Result<()> {
    let files = programs.kind_sources()?.join("images/base/files");
    for path in KIND_FILES {
        let target = context.join("kind").join(path);
        let parent = target.parent().context("a file without a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        // The module cache is read-only, the copy must not be: it is removed.
        let mut copy = Command::new("cp");
        copy.args(["-r", "--no-preserve=mode"]).arg(files.join(path)).arg(&target);
        process::output(&mut copy)?;
    }
    let version = context.join("kind/kind/version");
    fs::write(&version, &programs.kubernetes)
        .with_context(|| format!("write {}", version.display()))?;
    for (folder, program) in PROGRAMS {
        let folder = context.join("programs").join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let source = programs.path(program)?;
        fs::copy(&source, folder.join(program))
            .with_context(|| format!("copy {}", source.display()))?;
    }
    for name in OWN {
        let source = own_file(name);
        fs::copy(&source, context.join(name))
            .with_context(|| format!("copy {}", source.display()))?;
    }
    Ok(())
}

/// The images that kubeadm wants for this release, under the names that it uses.
fn kubeadm_images(programs: &Programs) -> Result<Vec<String>> {
    let mut list = Command::new(programs.path("kubeadm")?);
    list.args(["config", "images", "list", "--kubernetes-version", &programs.kubernetes]);
    Ok(process::output(&mut list)?.lines().map(str::to_owned).collect())
}

/// The images that the tests use, under the names that they use.
fn e2e_images(programs: &Programs) -> Result<Vec<String>> {
    let list = process::output(Command::new(programs.path("e2e.test")?).arg("--list-images"))?;
    Ok(list.lines().map(|line| line.trim().to_owned()).collect())
}

/// The name of the newest version of an image that the tests use.
///
/// # Errors
/// When e2e.test can't list its images, or none has this name.
pub fn test_image(programs: &Programs, name: &str) -> Result<String> {
    named(&e2e_images(programs)?, name)?.pop().context("no image")
}

/// The names in `images` whose last part, without the version, is `name`.
///
/// # Errors
/// When there is none.
fn named(images: &[String], name: &str) -> Result<Vec<String>> {
    let is_it = |image: &&String| {
        image.rsplit('/').next().and_then(|last| last.split(':').next()) == Some(name)
    };
    let found: Vec<_> = images.iter().filter(is_it).cloned().collect();
    ensure!(!found.is_empty(), "this release of Kubernetes uses no image {name}");
    Ok(found)
}

/// What Kubernetes itself and the tests run, each with its program on top of Debian.
fn images(kubeadm: &[String], e2e: &[String], programs: &Programs) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    let mut add = |names: &[String], name: &str, files: Vec<(String, PathBuf)>, run: &[&str]| {
        let (entrypoint, arguments) = run.split_at(1);
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        for name in named(names, name)? {
            images.push(Image {
                name,
                files: files.clone(),
                entrypoint: words(entrypoint),
                arguments: words(arguments),
                user: None,
            });
        }
        anyhow::Ok(())
    };
    for name in
        ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "etcd"]
    {
        let path = format!("/usr/local/bin/{name}");
        add(kubeadm, name, vec![(path.clone(), programs.path(name)?)], &[&path])?;
    }
    let coredns = ("/coredns".to_owned(), programs.path("coredns")?);
    add(kubeadm, "coredns", vec![coredns.clone()], &["/coredns"])?;
    // Some tests run a name server of their own in it.
    let mut agnhost = vec![("/agnhost".to_owned(), programs.path("agnhost")?), coredns];
    // It serves HTTPS with these.
    let porter = programs.kubernetes_sources()?.join("test/images/agnhost/porter");
    for file in ["localhost.crt", "localhost.key"] {
        agnhost.push((format!("/{file}"), porter.join(file)));
    }
    add(e2e, "agnhost", agnhost, &["/agnhost", "pause"])?;
    // Debian's tools are what the first two are for. Pods of the third only have to run: the tests look
    // at their endpoints. The last one holds a Pod's namespaces.
    for (names, name) in
        [(e2e, "glibc-dns-testing"), (e2e, "busybox"), (e2e, "nginx"), (kubeadm, "pause")]
    {
        add(names, name, Vec::new(), &["/bin/sleep", "infinity"])?;
    }
    Ok(images)
}

/// Removes the images that an older version of all this made.
fn remove_others(docker: &Docker, keep: &str) -> Result<()> {
    let list = docker.call(&["images", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY])?;
    for name in list.lines().filter(|name| *name != keep) {
        docker.call(&["rmi", name])?;
    }
    docker.call(&["image", "prune", "--force"]).map(drop)
}

#[cfg(test)]
mod tests {
    #[test]
    fn images_are_found_by_the_last_part_of_their_name_in_every_version() {
        let images = [
            "registry.example/coredns/coredns:v1.14.2",
            "registry.example/e2e-test-images/nginx:1.15-4",
            "registry.example/e2e-test-images/nginx:1.27-0",
        ]
        .map(str::to_owned);
        for (name, expected) in [("coredns", Some(&images[..1])), ("nginx", Some(&images[1..]))] {
            assert_eq!(super::named(&images, name).ok().as_deref(), expected, "{name}");
        }
        assert!(super::named(&images, "core").is_err(), "part of a name");
    }
}
