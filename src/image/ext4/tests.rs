//! Many changes with little memory, compared with what they should give.

use std::collections::BTreeMap;
use std::process::Command;

use super::directories::{KEPT_NAMES_MAX, NAMES_MAX};
use super::*;
use crate::place::{length, wide};
use crate::random::Random;
use crate::store::{Store, StoreOptions};

/// Files and their content, and directories, by path.
type Model = BTreeMap<String, Option<Vec<u8>>>;

fn walk(files: &mut FileSystem<'_>, directory: u32, path: &str, found: &mut Model) {
    let entries: Vec<_> = files.directory(directory).unwrap().entries.iter().map(|(name, entry)| (name.clone(), *entry)).collect();
    for (name, entry) in entries {
        let path = format!("{path}/{}", String::from_utf8(name).unwrap());
        if entry.is_directory() {
            walk(files, entry.inode, &path, found);
            found.insert(path, None);
            continue;
        }
        let inode = files.inode(entry.inode).unwrap().clone();
        let mut content = Vec::new();
        for run in files.extents(&inode).unwrap().0 {
            let mut bytes = vec![0; length(run.bytes())];
            files.space.volume.read_at(&mut bytes, run.start_byte()).unwrap();
            content.extend(bytes);
        }
        content.truncate(length(inode.file_size()));
        found.insert(path, Some(content));
    }
}

fn check(volume: &crate::volume::Volume, path: &std::path::Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(volume.size_bytes()).unwrap();
    let mut at = 0;
    while at < volume.size_bytes() {
        for run in volume.runs(at..volume.size_bytes(), 1 << 16).unwrap() {
            if matches!(run.kind, crate::volume::RunKind::Data { .. }) {
                let mut bytes = vec![0; length(run.bytes)];
                volume.read_at(&mut bytes, at).unwrap();
                file.write_all_at(&bytes, at).unwrap();
            }
            at += run.bytes;
        }
    }
    let checked = Command::new("/sbin/e2fsck").arg("-fn").arg(path).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn little_memory_gives_the_same_files() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path().join("store"), StoreOptions::default()).unwrap();
    let volume = store.create_volume("v", 256 << 20).unwrap();
    let mut model = Model::from([("/lost+found".into(), None)]);
    let mut random = Random::new(7);
    let mut random = |limit: u64| random.below(limit);
    for layer in 0..4 {
        let mut files = if layer == 0 { FileSystem::create(&volume).unwrap() } else { FileSystem::open(&volume).unwrap() };
        // At first as much as it wants.
        if layer > 0 {
            (files.inodes.kept_max, files.directories.names_max) = (3, 12);
        }
        for _ in 0..400 {
            let (top, name) = (format!("d{}", random(12)), format!("f{}", random(40)));
            let parent = files.directory_at(&[top.as_bytes()]).unwrap();
            model.insert(format!("/{top}"), None);
            let path = format!("/{top}/{name}");
            match random(8) {
                0 => {
                    files.remove(parent, name.as_bytes()).unwrap();
                    model.remove(&path);
                }
                1 if random(20) == 0 => {
                    files.remove(ROOT, top.as_bytes()).unwrap();
                    model.retain(|path, _| path != &format!("/{top}") && !path.starts_with(&format!("/{top}/")));
                }
                _ => {
                    let content = vec![u8::try_from(random(255)).unwrap() + 1; length(random(9000))];
                    let put = files.make_file(parent, name.as_bytes(), &Attributes::default(), wide(content.len()), &mut &content[..]);
                    put.unwrap();
                    model.insert(path, Some(content));
                }
            }
            assert!(layer == 0 || files.inodes.len() <= 3, "{}", files.inodes.len());
        }
        files.commit().unwrap();
        let mut found = Model::new();
        walk(&mut files, ROOT, "", &mut found);
        assert!(found == model, "layer {layer}");
        check(&volume, &directory.path().join("image"));
    }
}

#[test]
fn what_is_kept_in_memory_has_room_for_the_largest_directory() {
    const { assert!(KEPT_NAMES_MAX >= 2 * NAMES_MAX) };
}
