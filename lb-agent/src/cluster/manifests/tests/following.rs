//! A directory that changes under a running source.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::{ManifestError, Manifests};
use super::{Known, service};
use crate::cluster::snapshot::Change;

/// A followed directory, in a directory of its own so that it can be replaced.
struct Followed {
    parent: TempDir,
    receiver: mpsc::Receiver<Vec<Change>>,
    known: Known,
    task: JoinHandle<Result<(), ManifestError>>,
}

impl Followed {
    /// Begins with these files; everything they say has been received.
    async fn new(files: &[(&str, &str)]) -> Self {
        let parent = TempDir::new().unwrap();
        let directory = parent.path().join("manifests");
        fs::create_dir(&directory).unwrap();
        for (name, content) in files {
            fs::write(directory.join(name), content).unwrap();
        }
        Self::start(parent).await
    }

    async fn start(parent: TempDir) -> Self {
        let manifests = Manifests::open(&parent.path().join("manifests"), "node-a").unwrap();
        let (sender, receiver) = mpsc::channel(16);
        let task = tokio::spawn(manifests.run(sender));
        let mut followed = Self { parent, receiver, known: Known::new(), task };
        followed.until("the first state", |known| known.planner.is_synced()).await;
        followed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.parent.path().join("manifests").join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Receives until `done`; long before the patrol would look by itself.
    async fn until(&mut self, what: &str, done: impl Fn(&Known) -> bool) {
        let wait = async {
            while !done(&self.known) {
                let changes = self.receiver.recv().await.expect("the source runs");
                self.known.take(changes);
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(5), wait).await;
        let (services, problems) = (self.known.services(), self.known.problems());
        assert!(result.is_ok(), "{what}: not seen; {services:?}, {problems:?}");
    }

    /// Nothing is received for a while.
    async fn quiet(&mut self, what: &str) {
        let received = tokio::time::timeout(Duration::from_millis(300), self.receiver.recv()).await;
        assert!(received.is_err(), "{what}: {received:?}");
    }
}

#[tokio::test]
async fn files_are_created_changed_renamed_and_deleted() {
    let mut followed = Followed::new(&[("a.yaml", &service("a", 80))]).await;
    assert_eq!(followed.known.services(), ["default/a"]);
    followed.write("b.yaml", &service("b", 80));
    followed.until("a new file", |known| known.services() == ["default/a", "default/b"]).await;
    followed.write("b.yaml", &service("b", 81));
    followed.until("a changed file", |known| known.port("b") == Some(81)).await;
    followed.write("b.yaml", &service("b", 82));
    followed.until("of the same size", |known| known.port("b") == Some(82)).await;
    fs::rename(followed.path("b.yaml"), followed.path("c.yaml")).unwrap();
    followed.quiet("a rename alone changes nothing").await;
    fs::rename(followed.path("c.yaml"), followed.path("c.off")).unwrap();
    followed.until("renamed away", |known| known.services() == ["default/a"]).await;
    fs::rename(followed.path("c.off"), followed.path("c.yaml")).unwrap();
    followed.until("and back", |known| known.port("b") == Some(82)).await;
    followed.write("new", &service("c", 90));
    fs::rename(followed.path("new"), followed.path("c.yaml")).unwrap();
    followed
        .until("replaced atomically", |known| known.services() == ["default/a", "default/c"])
        .await;
    fs::remove_file(followed.path("a.yaml")).unwrap();
    followed.until("a deleted file", |known| known.services() == ["default/c"]).await;
}

#[tokio::test]
async fn an_invalid_file_keeps_its_last_good_state_until_it_is_corrected() {
    let mut followed =
        Followed::new(&[("a.yaml", &service("a", 80)), ("b.yaml", &service("b", 80))]).await;
    followed.write("a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: a\n");
    followed
        .until("the problem", |known| {
            known.problems().iter().any(|problem| problem.starts_with("a.yaml:4: is not usable"))
        })
        .await;
    assert_eq!(followed.known.port("a"), Some(80), "the last good state of the file stays");
    followed.write("b.yaml", &service("b", 81));
    followed.until("other files count", |known| known.port("b") == Some(81)).await;
    assert_eq!(followed.known.port("a"), Some(80));
    followed.write("a.yaml", &service("a", 81));
    followed.until("corrected", |known| known.port("a") == Some(81)).await;
    followed.until("no problem is left", |known| known.problems().is_empty()).await;
    followed.write("a.yaml", "nonsense");
    followed.until("invalid again", |known| !known.problems().is_empty()).await;
    fs::remove_file(followed.path("a.yaml")).unwrap();
    followed
        .until("deleted while invalid", |known| {
            known.services() == ["default/b"] && known.problems().is_empty()
        })
        .await;
}

#[tokio::test]
async fn a_half_written_file_does_not_count_even_when_others_change() {
    let whole = format!("{}---\n{}", service("a", 80), service("b", 80));
    let mut followed = Followed::new(&[("a.yaml", &whole)]).await;
    let mut file = fs::File::create(followed.path("a.yaml")).unwrap();
    file.write_all(service("a", 81).as_bytes()).unwrap();
    file.flush().unwrap();
    followed.write("c.yaml", &service("c", 80));
    followed.until("the other file", |known| known.port("c") == Some(80)).await;
    assert_eq!(followed.known.port("a"), Some(80), "not read before it is closed");
    assert_eq!(followed.known.port("b"), Some(80));
    file.write_all(format!("---\n{}", service("b", 81)).as_bytes()).unwrap();
    drop(file);
    followed
        .until("closed", |known| known.port("a") == Some(81) && known.port("b") == Some(81))
        .await;
}

#[tokio::test]
async fn a_config_map_volume_is_swapped_through_its_data_link() {
    // What kubelet's AtomicWriter does: files are links through ..data, which is replaced.
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("manifests");
    let version = |name: &str, port: u16| {
        fs::create_dir_all(directory.join(name)).unwrap();
        fs::write(directory.join(name).join("web.yaml"), service("web", port)).unwrap();
    };
    version("..2026_01", 80);
    symlink("..2026_01", directory.join("..data")).unwrap();
    symlink("..data/web.yaml", directory.join("web.yaml")).unwrap();
    let mut followed = Followed::start(parent).await;
    assert_eq!(followed.known.port("web"), Some(80));
    for (old, new, port) in [("..2026_01", "..2026_02", 81), ("..2026_02", "..2026_03", 82)] {
        version(new, port);
        symlink(new, directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
        fs::remove_dir_all(directory.join(old)).unwrap();
        followed.until("swapped", |known| known.port("web") == Some(port)).await;
    }
    assert_eq!(followed.known.problems(), [""; 0]);
}

#[tokio::test]
async fn a_link_or_hard_link_that_appears_counts() {
    let mut followed = Followed::new(&[]).await;
    fs::write(followed.parent.path().join("a"), service("a", 80)).unwrap();
    symlink("../a", followed.path("a.yaml")).unwrap();
    followed.until("a link", |known| known.services() == ["default/a"]).await;
    fs::hard_link(followed.parent.path().join("a"), followed.path("b.yaml")).unwrap();
    followed
        .until("a hard link to the same object", |known| {
            known.problems().iter().any(|problem| problem.contains("is in a.yaml too"))
        })
        .await;
    fs::remove_file(followed.path("a.yaml")).unwrap();
    followed.until("the other one takes over", |known| known.problems().is_empty()).await;
    assert_eq!(followed.known.services(), ["default/a"]);
}

#[tokio::test]
async fn a_directory_that_vanishes_keeps_its_objects_and_its_successor_counts() {
    let mut followed = Followed::new(&[("a.yaml", &service("a", 80))]).await;
    let (directory, old) = (followed.path(""), followed.parent.path().join("old"));
    fs::rename(&directory, &old).unwrap();
    followed
        .until("the problem", |known| {
            known.problems().iter().any(|problem| problem.contains("can't be listed"))
        })
        .await;
    assert_eq!(followed.known.services(), ["default/a"]);
    fs::create_dir(&directory).unwrap();
    followed.write("b.yaml", &service("b", 80));
    followed
        .until("the new directory", |known| {
            known.services() == ["default/b"] && known.problems().is_empty()
        })
        .await;
    followed.write("b.yaml", &service("b", 81));
    followed.until("is followed", |known| known.port("b") == Some(81)).await;
}

#[tokio::test]
async fn a_burst_of_files_is_few_batches() {
    let mut followed = Followed::new(&[]).await;
    for index in 0..100 {
        followed.write(&format!("{index}.yaml"), &service(&format!("s{index}"), 80));
    }
    let mut batches = 0;
    while followed.known.services().len() < 100 {
        let changes = followed.receiver.recv().await.unwrap();
        followed.known.take(changes);
        batches += 1;
    }
    assert!(batches <= 50, "{batches} batches");
}

#[tokio::test]
async fn the_source_ends_when_nobody_receives() {
    let Followed { receiver, task, parent, .. } = Followed::new(&[]).await;
    drop(receiver);
    let ended = tokio::time::timeout(Duration::from_secs(5), task).await;
    assert!(ended.unwrap().unwrap().is_ok());
    drop(parent);
}

#[tokio::test]
async fn a_directory_that_does_not_exist_is_an_error_that_says_what_to_do() {
    let parent = TempDir::new().unwrap();
    let missing = parent.path().join("missing");
    let error = Manifests::open(&missing, "node-a").err().unwrap().to_string();
    assert!(error.contains("missing") && error.contains("create it"), "{error}");
    fs::write(parent.path().join("file"), "").unwrap();
    assert!(Manifests::open(&parent.path().join("file"), "node-a").is_err());
}
