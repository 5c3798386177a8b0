//! Files, attributes and links in the file system of an imported image.

use tar::EntryType;

use crate::fixture::{Archive, Host, Layout};
use crate::programs::{check, debugfs};

fn text(image: &std::path::Path, request: &str) -> String {
    String::from_utf8_lossy(&debugfs(image, request)).into_owned()
}

#[test]
fn all_kinds_of_files_arrive() {
    let (host, layout) = (Host::new(), Layout::new());
    let large: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 3) as u8).collect();
    let long_target = "t/".repeat(45);
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = layout.layer(
        Archive::new()
            .directory("./")
            .entry(EntryType::Directory, "etc/", 0o1750, "", b"")
            .file("etc/hostname", b"volfork\n")
            .file("etc/empty", b"")
            .file("no/such/parent", b"made")
            .file("large", &large)
            .symlink("etc/short", "hostname")
            .symlink("etc/long", &long_target)
            .link("etc/again", "etc/hostname")
            .entry(EntryType::Char, "char", 0o600, "", b"")
            .entry(EntryType::Block, "block", 0o660, "", b"")
            .entry(EntryType::Fifo, "fifo", 0o644, "", b"")
            .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.long", &[b'v'; 3000])])
            .entry(EntryType::Regular, "ping", 0o4755, "", b"ELF")
            .pax(&[("path", "p/".repeat(120).as_bytes()), ("mtime", b"1.5")])
            .directory("ignored"),
    );
    layout.image("v1", &[&layer]);
    let imported = layout.import(&host.store, "v1", "v").unwrap();
    assert_eq!((imported.start.layers, imported.start.layers_reused, imported.size_bytes), (1, 0, 8 << 30));
    let image = host.export("v");
    check(&image);
    assert_eq!(debugfs(&image, "cat /etc/hostname"), b"volfork\n");
    assert_eq!(debugfs(&image, "cat /etc/again"), b"volfork\n");
    assert_eq!(debugfs(&image, "cat /no/such/parent"), b"made");
    assert!(debugfs(&image, "cat /large") == large);
    let file = text(&image, "stat /etc/hostname");
    for part in ["Mode:  0640", "User:  1000", "Group: 100000", "Links: 2", "Size: 8", "mtime: 0x6553f100"] {
        assert!(file.contains(part), "{part}: {file}");
    }
    assert!(text(&image, "stat /etc").contains("Mode:  01750"));
    assert!(text(&image, "stat /etc/short").contains("Fast link dest: \"hostname\""));
    assert!(String::from_utf8_lossy(&debugfs(&image, "cat /etc/long")).contains(&long_target));
    assert!(text(&image, "stat /char").contains("Type: character special") && text(&image, "stat /char").contains("259:300"));
    assert!(text(&image, "stat /block").contains("Type: block special"));
    assert!(text(&image, "stat /fifo").contains("Type: FIFO"));
    let ping = text(&image, "stat /ping");
    assert!(ping.contains("Mode:  04755") && ping.contains("security.capability (20)") && ping.contains("user.long (3000)"), "{ping}");
    assert!(text(&image, &format!("stat /{}", "p/".repeat(120))).contains("Type: directory"));
}

#[test]
fn whiteouts_remove_what_lower_layers_have_and_nothing_else() {
    let (host, layout) = (Host::new(), Layout::new());
    let base = layout.layer(
        Archive::new().file("a/one", b"1").file("a/two", &[2; 9000]).file("b/deep/three", b"3").file("keep", b"k").link("c/link", "keep"),
    );
    let top = layout.layer(
        Archive::new()
            .file("a/new", b"n")
            .file("a/.wh..wh..opq", b"")
            .file(".wh.b", b"")
            .file("c/.wh.link", b"")
            .file("c/.wh.absent", b"")
            .file(".wh.lost+found", b"")
            .file("keep", b"other"),
    );
    // A directory gives way to a file, and a file to a directory.
    let last = layout.layer(Archive::new().file("a", b"file").directory("keep").file("keep/in", b"i"));
    layout.image("two", &[&base, &top]);
    layout.image("three", &[&base, &top, &last]);
    layout.import(&host.store, "two", "two").unwrap();
    let image = host.export("two");
    check(&image);
    assert_eq!(debugfs(&image, "cat /a/new"), b"n");
    assert_eq!(debugfs(&image, "cat /keep"), b"other");
    let names = text(&image, "ls -p /") + &text(&image, "ls -p /a") + &text(&image, "ls -p /c");
    assert!(!names.contains("/b/") && !names.contains("/one/") && !names.contains("/two/") && !names.contains("/link/"), "{names}");
    assert!(names.contains("/lost+found/"), "{names}");
    let again = layout.import(&host.store, "three", "three").unwrap();
    assert_eq!(again.start.layers_reused, 2);
    let image = host.export("three");
    check(&image);
    assert_eq!(debugfs(&image, "cat /a"), b"file");
    assert_eq!(debugfs(&image, "cat /keep/in"), b"i");
}

#[test]
fn many_files_fill_many_blocks_of_directories_and_inodes() {
    let (host, layout) = (Host::new(), Layout::new());
    let mut archive = Archive::new();
    for number in 0..3000 {
        archive = archive.file(&format!("many/{number:04}-{}", "n".repeat(40)), &[number as u8; 10]);
    }
    let base = layout.layer(archive);
    let mut archive = Archive::new();
    for number in (0..3000).filter(|number| number % 7 != 0) {
        archive = archive.file(&format!("many/.wh.{number:04}-{}", "n".repeat(40)), b"");
    }
    let top = layout.layer(archive.file("many/after", b"x"));
    layout.image("v", &[&base, &top]);
    layout.import(&host.store, "v", "v").unwrap();
    let image = host.export("v");
    check(&image);
    assert_eq!(text(&image, "ls -p /many").lines().filter(|line| line.contains("nnnn")).count(), 3000_usize.div_ceil(7));
}

#[test]
fn links_lead_inside_of_the_image_and_never_out() {
    let (host, layout) = (Host::new(), Layout::new());
    let base = layout
        .layer(Archive::new().directory("usr/lib").symlink("lib", "../../../usr/lib").symlink("top", "/../..").symlink("loop", "loop"));
    let top = layout.layer(Archive::new().file("lib/library", b"so").file("top/file", b"t").file("/absolute", b"a"));
    layout.image("v", &[&base, &top]);
    layout.import(&host.store, "v", "v").unwrap();
    let image = host.export("v");
    check(&image);
    assert_eq!(debugfs(&image, "cat /usr/lib/library"), b"so");
    assert_eq!(debugfs(&image, "cat /file"), b"t");
    assert_eq!(debugfs(&image, "cat /absolute"), b"a");
    for (name, archive) in [
        ("up", Archive::new().file("../escape", b"x")),
        ("within", Archive::new().file("usr/../../escape", b"x")),
        ("loop", Archive::new().file("loop/file", b"x")),
        ("through", Archive::new().file("f", b"x").file("f/g", b"x")),
        ("hard", Archive::new().link("hard", "../../etc/passwd")),
        ("absent", Archive::new().link("hard", "absent")),
        ("directory", Archive::new().link("hard", "usr")),
        ("target", Archive::new().symlink("empty", "")),
        ("type", Archive::new().entry(EntryType::new(b'Z'), "z", 0o644, "", b"")),
    ] {
        layout.image(name, &[&base, &layout.layer(archive)]);
        let error = layout.import(&host.store, name, "bad").unwrap_err();
        assert_eq!(error.kind(), volfork::ErrorKind::InvalidInput, "{name}: {error}");
        assert_eq!(host.store.volume_names(), ["v"], "{name}");
    }
}

#[test]
fn sizes_are_those_that_were_asked_for() {
    let (host, layout) = (Host::new(), Layout::new());
    let layer = layout.layer(Archive::new().file("f", b"content"));
    layout.image("v", &[&layer]);
    for (number, size) in [1 << 27, (1 << 30) + 5 * 4096, 8 << 30, 17 << 30].into_iter().enumerate() {
        let options = volfork::image::ImportOptions::default().with_size_bytes(size);
        let name = format!("v{number}");
        let imported = layout.import_with(&host.store, "v", &name, &options).unwrap();
        assert_eq!((imported.size_bytes, host.store.show(&name).unwrap().size_bytes), (size, size));
        assert_eq!(imported.start.layers_reused, u64::from(number > 0));
        let image = host.export(&name);
        check(&image);
        assert_eq!(debugfs(&image, "cat /f"), b"content");
    }
    let options = volfork::image::ImportOptions::default().with_size_bytes(1 << 20);
    assert_eq!(layout.import_with(&host.store, "v", "small", &options).unwrap_err().kind(), volfork::ErrorKind::InvalidInput);
}
