//! Unusual and hostile archives.

use std::os::unix::fs::FileExt;

use tar::{EntryType, Header};
use volfork::ErrorKind;
use volfork::content::Digest;
use volfork::image::{ImportOptions, import_image};

use crate::fixture::{Archive, Host, Layer, Layout};
use crate::programs::{check, debugfs, run};

fn text(image: &std::path::Path, request: &str) -> String {
    String::from_utf8_lossy(&debugfs(image, request)).into_owned()
}

fn header(kind: EntryType, name: &str, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes);
    header
}

/// The error of importing a layer.
fn refusal(archive: Archive) -> String {
    let (host, layout) = (Host::new(), Layout::new());
    layout.image("v", &[&layout.layer(archive)]);
    let error = layout.import(&host.store, "v", "v").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    error.to_string()
}

#[test]
fn headers_that_extend_an_entry_are_small_or_are_not_read() {
    let bytes = 64 << 20;
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let (host, layout) = (Host::new(), Layout::new());
        let archive =
            Archive::new().file("before", b"x").raw(header(kind, "x", bytes), &vec![b'a'; bytes as usize]).file("f", b"x").bytes();
        let descriptor = layout.blob("application/vnd.oci.image.layer.v1.tar", &archive);
        layout.image("v", &[&Layer { descriptor, diff: Digest::of(&archive) }]);
        let mut read = 0;
        let mut tell = |progress: volfork::image::ImportProgress| {
            read = progress.bytes_done;
            Ok(())
        };
        let imported = import_image(&host.store, &layout.source(), &layout.name("v"), "v", &ImportOptions::default(), &mut tell);
        let error = imported.unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("behind 'before'"), "{error}");
        assert!(error.to_string().contains("1048576 are the most") && read < 2 << 20, "{read}: {error}");
    }
    // Neither are many of them.
    let half = vec![b'a'; 600 << 10];
    let both = Archive::new().raw(header(EntryType::GNULongName, "x", half.len() as u64), &half);
    let both = both.raw(header(EntryType::GNULongLink, "x", half.len() as u64), &half).file("f", b"x");
    assert!(refusal(both).contains("are the most"));
    // The old forms of headers know no types, and are not read either.
    let mut old = Header::new_old();
    old.as_old_mut().name[0] = b'x';
    old.as_old_mut().linkflag = [b'x'];
    old.set_size(bytes);
    old.set_mode(0o644);
    old.set_uid(0);
    old.set_gid(0);
    old.set_mtime(0);
    assert!(refusal(Archive::new().raw(old, &vec![b'a'; bytes as usize]).file("f", b"x")).contains("are the most"));
}

#[test]
fn attributes_and_types_match_container_runtimes() {
    let (host, layout) = (Host::new(), Layout::new());
    let lines = b"\n12 b=c\n\n";
    let mut sized = header(EntryType::Directory, "sized", 1000);
    sized.set_mode(0o711);
    let global = b"22 path=of/all/others\n\0";
    let archive = Archive::new()
        .raw(header(EntryType::XGlobalHeader, "g", global.len() as u64), global)
        .pax(&[("SCHILY.xattr.user.lines", lines), ("path", b"a/long\nname")])
        .file("f", b"content")
        .raw(header(EntryType::Regular, "old/", 0), b"")
        .raw(sized, b"")
        .file("old/in", b"x");
    layout.image("v", &[&layout.layer(archive)]);
    layout.import(&host.store, "v", "v").unwrap();
    let image = host.export("v");
    check(&image);
    let listed = text(&image, "ls -p /a");
    let inode =
        listed.lines().find(|line| line.ends_with("/long")).and_then(|line| line.split('/').nth(1)).unwrap_or_else(|| panic!("{listed}"));
    assert_eq!(debugfs(&image, &format!("cat <{inode}>")), b"content");
    let listed = text(&image, &format!("ea_list <{inode}>"));
    assert!(listed.contains("user.lines (9)"), "{listed}");
    assert!(text(&image, "stat /old").contains("Type: directory") && text(&image, "stat /sized").contains("Mode:  0711"));
}

#[test]
fn times_keep_fractions_and_signs() {
    let (host, layout) = (Host::new(), Layout::new());
    let mut before = header(EntryType::Regular, "binary", 0);
    before.as_old_mut().mtime = [0xff; 12];
    let archive = Archive::new()
        .pax(&[("mtime", b"1.5")])
        .file("fraction", b"")
        .pax(&[("mtime", b"-5")])
        .file("before", b"")
        .pax(&[("mtime", b"-1.25")])
        .file("both", b"")
        .pax(&[("mtime", b"4294967296.000000001")])
        .file("late", b"")
        .raw(before, b"");
    layout.image("v", &[&layout.layer(archive)]);
    layout.import(&host.store, "v", "v").unwrap();
    let image = host.export("v");
    check(&image);
    for (name, time) in [
        ("fraction", "0x00000001:77359400"),
        ("before", "0xfffffffb:00000000"),
        ("both", "0xfffffffe:b2d05e00"),
        ("late", "0x00000000:00000005"),
        ("binary", "0xffffffff:00000000"),
    ] {
        let stat = text(&image, &format!("stat /{name}"));
        assert!(stat.contains(&format!("mtime: {time}")), "{name}: {stat}");
    }
}

#[test]
fn sparse_files_of_every_form_arrive_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let make = |name: &str, size: u64, pieces: &[(u64, usize)]| {
        let file = std::fs::File::create(path(name)).unwrap();
        file.set_len(size).unwrap();
        for (number, (offset, bytes)) in pieces.iter().enumerate() {
            file.write_all_at(&vec![number as u8 + 1; *bytes], *offset).unwrap();
        }
    };
    let many: Vec<(u64, usize)> = (0..200).map(|number| (number * 16384, 4096)).collect();
    let long = format!("dir/{}", "n".repeat(150));
    std::fs::create_dir(path("dir")).unwrap();
    make("many", 4 << 20, &many);
    make(&long, 1 << 20, &[(512 << 10, 100)]);
    make("holes", 3 << 20, &[]);
    make("ends", (1 << 20) + 7, &[(0, 5000), ((1 << 20) - 93, 100)]);
    let names = ["many", &long, "holes", "ends"];
    for form in ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"] {
        let (host, layout) = (Host::new(), Layout::new());
        let archive = path("archive.tar");
        let mut arguments =
            vec!["--create", "--sparse", form, "--file", archive.to_str().unwrap(), "-C", directory.path().to_str().unwrap()];
        arguments.extend(if form == "--format=gnu" { [].iter() } else { ["--format=posix"].iter() });
        arguments.extend(names);
        run("tar", &arguments);
        let archive = std::fs::read(&archive).unwrap();
        assert!(archive.len() < 2 << 20, "{form} is sparse");
        layout.image("v", &[&layout.layer_of(&archive)]);
        layout.import(&host.store, "v", "v").unwrap();
        let image = host.export("v");
        check(&image);
        for name in names {
            assert!(debugfs(&image, &format!("cat /{name}")) == std::fs::read(path(name)).unwrap(), "{form}: {name}");
        }
    }
}

#[test]
fn sparse_files_that_do_not_fit_together_are_named() {
    let listed = |records: &[(&str, &[u8])], content: &[u8]| refusal(Archive::new().pax(records).file("f", content));
    let map: &[u8] = b"1\n0\n512\n";
    let content = [map, &vec![0; 512 - map.len()], &[7; 100]].concat();
    for refused in [
        // The pieces are longer than what is stored, beyond the end, out of order, not numbers, too few.
        listed(&[("GNU.sparse.size", b"4096"), ("GNU.sparse.map", b"0,4096")], b"short"),
        listed(&[("GNU.sparse.size", b"4"), ("GNU.sparse.map", b"0,5")], b"short"),
        listed(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"3,2,0,3")], b"short"),
        listed(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,x")], b"short"),
        listed(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,5,7")], b"short"),
        listed(&[("GNU.sparse.size", b"99999999999999999999"), ("GNU.sparse.map", b"0,5")], b"short"),
        listed(&[("GNU.sparse.size", b"18446744073709551615"), ("GNU.sparse.map", b"18446744073709551615,5")], b"short"),
        listed(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")], b"short"),
        listed(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"4096")], &content),
        listed(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"4096")], &vec![b'x'; 1024]),
    ] {
        assert!(refused.contains("'f' is a sparse file whose pieces do not fit together"), "{refused}");
    }
    // A list without end is not read to it.
    let endless = [b"99999999\n".to_vec(), b"1\n".repeat(1 << 20)].concat();
    assert!(listed(&[("GNU.sparse.realsize", b"4096")], &endless).contains("more than 1048576 bytes"));
}

#[test]
fn what_does_not_fit_is_named() {
    let large = Archive::new().pax(&[("SCHILY.xattr.user.large", &[7; 9000])]).file("dir/large", b"x");
    let refused = refusal(large);
    assert!(refused.contains("'dir/large'") && refused.contains("'user.large' of 9000 bytes") && refused.contains("4096"), "{refused}");
    for archive in [
        Archive::new().file("lost+found", b"x"),
        Archive::new().symlink("lost+found", "x"),
        Archive::new().file("f", b"x").link("./lost+found", "f"),
        Archive::new().entry(EntryType::Fifo, "lost+found", 0o644, "", b""),
    ] {
        let refused = refusal(archive);
        assert!(refused.contains("lost+found'") && refused.contains("every ext4 file system"), "{refused}");
    }
    // What every file system has may be in the image as well.
    let (host, layout) = (Host::new(), Layout::new());
    let archive =
        Archive::new().entry(EntryType::Directory, "lost+found", 0o711, "", b"").file("lost+found/f", b"x").file(".wh.lost+found", b"");
    layout.image("v", &[&layout.layer(archive)]);
    layout.import(&host.store, "v", "v").unwrap();
    let image = host.export("v");
    check(&image);
    assert!(text(&image, "stat /lost+found").contains("Mode:  0711"));
}

#[test]
fn an_impossible_image_size_is_refused_at_once() {
    let (host, layout) = (Host::new(), Layout::new());
    let layer = layout.layer(Archive::new().file("f", b"x"));
    std::fs::remove_file(layout.blob_path(&layer.descriptor["digest"])).unwrap();
    layout.image("v", &[&layer]);
    for size in [16 << 40, 17 << 40, u64::MAX] {
        let options = ImportOptions::default().with_size_bytes(size);
        let error = layout.import_with(&host.store, "v", "v", &options).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("17592051826688"), "{error}");
    }
}

#[test]
fn a_hundred_thousand_files_arrive() {
    let (host, layout) = (Host::new(), Layout::new());
    let mut archive = Archive::new();
    for number in 0..100_000 {
        archive = archive.file(&format!("d{}/{number}", number / 30_000), b"");
    }
    layout.image("v", &[&layout.layer(archive)]);
    layout.import(&host.store, "v", "v").unwrap();
    let image = host.export("v");
    check(&image);
    assert_eq!(text(&image, "ls -p /d2").lines().filter(|line| line.contains("/100640/")).count(), 30_000);
}
