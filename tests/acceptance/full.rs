//! A host with a full disk: its blocks stay correct, missing blocks are read from the source, and hydration resumes when there is
//! space.

use std::path::{Path, PathBuf};

use crate::disk::{Disk, MIB, image};
use crate::ledger::{Fate, Ledger};
use crate::programs::run;
use crate::world::{World, text, wait};

/// A file system of so many bytes, unmounted at the end.
struct Small(PathBuf);

impl Small {
    fn mount(place: &Path, options: &str) {
        run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", place.to_str().unwrap()]);
    }

    fn at(place: PathBuf, bytes: usize) -> Self {
        std::fs::create_dir(&place).unwrap();
        Self::mount(&place, &format!("size={bytes}"));
        Self(place)
    }

    fn grow(&self, bytes: usize) {
        Self::mount(&self.0, &format!("remount,size={bytes}"));
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_day_of_a_full_disk() {
    let world = World::with_directory();
    let mut ledger = Ledger::default();
    let small = Small::at(world.path("b"), 16 * MIB);
    let bytes = image();
    std::fs::write(world.path("image"), &bytes).unwrap();
    world.ok("a", &["import", "base", "image"]);
    world.ok("a", &["snapshot", "base", "s"]);
    world.ok("b", &["init"]);
    // Its operator promises more than there is.
    let _servers = ["a", "b"].map(|host| world.host(host, if host == "a" { "ams" } else { "fra" }, 4, 64 * MIB));
    let source = world.uri("a", "base@s");
    let place = ["place", "--source", &source, "--region", "fra", "--reserve", "--ttl", "1h", "--volume", "web"];
    let (id, host) = wait("the host", || match world.told("nobody", &place).output().unwrap() {
        output if output.status.success() => Ok(ledger.made(&serde_json::from_slice(&output.stdout).unwrap()).remove(0)),
        output => Err(text(&output.stderr)),
    });
    assert_eq!(host, "b");
    world.ok("b", &["fork", &source, "web", "--reservation", &id]);
    ledger.became(&id, Fate::Used);
    wait("the full disk", || {
        let volume = world.ok("b", &["show", "web"]);
        if volume["hydration"]["state"] == "no_space" { Ok(()) } else { Err(volume.to_string()) }
    });
    let mut web = Disk { uri: world.uri("b", "web"), bytes };
    web.check(world.directory());
    web.cannot_write(31 * MIB, MIB);
    web.check(world.directory());
    ledger.balance(&world, &["a", "b"]);
    small.grow(64 * MIB);
    world.ok("b", &["hydrate", "web", "--wait", "--timeout", "1m"]);
    web.write(30 * MIB, MIB, 77, true);
    web.check(world.directory());
    ledger.balance(&world, &["a", "b"]);
    world.ok("b", &["scrub"]);
}
