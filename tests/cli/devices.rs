//! Exports onto devices, and into a file system that is too small. Opt-in, as it needs root and loop devices: `VOLFORK_FULL_DISK=1`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host::Host;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A file as a device, mounted or not.
struct Loop {
    device: String,
    mounted: Option<PathBuf>,
}

impl Loop {
    fn new(file: &Path) -> Self {
        Self { device: run("losetup", &["--find", "--show", file.to_str().unwrap()]), mounted: None }
    }

    fn mount(&mut self, place: &Path) {
        run("mkfs.ext4", &["-q", &self.device]);
        fs::create_dir(place).unwrap();
        run("mount", &[&self.device, place.to_str().unwrap()]);
        self.mounted = Some(place.to_owned());
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Some(place) = &self.mounted {
            run("umount", &[place.to_str().unwrap()]);
        }
        run("losetup", &["--detach", &self.device]);
    }
}

#[test]
fn exports_onto_devices_and_full_file_systems() {
    if std::env::var_os("VOLFORK_FULL_DISK").is_none() {
        return;
    }
    let host = Host::new();
    let bytes = host.import("v", 5);
    let server = host.serve(&[]);
    let file = |name: &str, size: usize, byte: u8| {
        fs::write(host.path(name), vec![byte; size]).unwrap();
        host.path(name)
    };
    // The old bytes of a device go away, also where the volume has none; what is behind the volume stays.
    let image = file("dirty", 16 << 20, 0xff);
    let dirty = Loop::new(&image);
    host.ok(&["export", "v", &dirty.device]);
    drop(dirty);
    let written = fs::read(&image).unwrap();
    assert!(written[..bytes.len()] == bytes && written[bytes.len()..].iter().all(|byte| *byte == 0xff));
    let image = file("small", 8 << 20, 0xff);
    let small = Loop::new(&image);
    assert_eq!(host.kind(&["export", "v", &small.device]), "no_space");
    drop(small);
    assert!(fs::read(&image).unwrap().iter().all(|byte| *byte == 0xff));
    // A file system that is mounted is not written over.
    let image = file("mounted", 32 << 20, 0);
    let mut mounted = Loop::new(&image);
    mounted.mount(&host.path("mount"));
    fs::write(host.path("mount/kept"), "kept").unwrap();
    let refused = host.fails(1, &["export", "v", &mounted.device]);
    assert!(refused.contains("in use, perhaps mounted"), "{refused}");
    assert_eq!(fs::read(host.path("mount/kept")).unwrap(), b"kept");
    // What does not fit leaves what was there.
    let noise: Vec<u8> = (0..64_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    File::create(host.path("noise")).unwrap().write_all_at(&noise, 0).unwrap();
    host.ok(&["import", "noise", "noise"]);
    fs::write(host.path("mount/out"), "what was there").unwrap();
    assert_eq!(host.kind(&["export", "noise", "mount/out"]), "no_space");
    assert_eq!(fs::read(host.path("mount/out")).unwrap(), b"what was there");
    let mut names: Vec<_> = fs::read_dir(host.path("mount")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["kept", "lost+found", "out"]);
    drop(mounted);
    server.stop();
}
