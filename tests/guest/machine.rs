//! A virtual machine without acceleration, and its console.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::archive::Archive;

/// Where `tests/guest/packages` unpacks the packages.
const ROOT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/guest/root");
/// The linker of the programs in the guest.
const LINKER: &str = "/lib64/ld-linux-x86-64.so.2";
/// Programs that `busybox` is.
const APPLETS: [&str; 13] = ["sh", "mount", "insmod", "ip", "cat", "dmesg", "grep", "tail", "rm", "poweroff", "echo", "[", "sleep"];
/// All that a guest may take.
const PATIENCE: Duration = Duration::from_secs(240);

/// What the guest is made of.
pub struct Parts {
    kernel: PathBuf,
    modules: PathBuf,
    qemu: PathBuf,
    programs: [(&'static str, PathBuf); 4],
}

/// Folders of libraries that were unpacked.
fn libraries() -> String {
    format!("{ROOT}/usr/lib/x86_64-linux-gnu:{ROOT}/lib/x86_64-linux-gnu")
}

/// A program that was unpacked, or that the machine has.
fn program(name: &str) -> Result<PathBuf, String> {
    let own = ["usr/bin", "usr/sbin", "bin", "sbin"].map(|folder| Path::new(ROOT).join(folder).join(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let others = std::env::split_paths(&path).chain(["/usr/sbin".into()]).map(|folder| folder.join(name));
    own.into_iter().chain(others).find(|path| path.is_file()).ok_or_else(|| format!("there is no {name}"))
}

fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf, String> {
    let mut entries = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let wanted = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    entries.find(wanted).ok_or_else(|| format!("there is no {prefix} in {}", folder.display()))
}

/// The files of loaded libraries that a program needs.
fn needs(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", libraries()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split_once("=> ")?.1.split(' ').next().map(PathBuf::from)).collect()
}

impl Parts {
    /// What there is.
    ///
    /// # Errors
    /// What is missing.
    pub fn find() -> Result<Self, String> {
        if !cfg!(target_arch = "x86_64") {
            return Err("the guest is for x86_64".into());
        }
        let root = Path::new(ROOT);
        let itself = std::env::current_exe().map_err(|error| error.to_string())?;
        Ok(Self {
            kernel: only_entry(&root.join("boot"), "vmlinuz")?,
            modules: only_entry(&root.join("lib/modules"), "")?.join("kernel"),
            qemu: program("qemu-system-x86_64")?,
            programs: [
                ("busybox", program("busybox")?),
                ("fio", program("fio")?),
                ("nbd-client", program("nbd-client")?),
                ("guest", itself),
            ],
        })
    }

    /// Writes the first file system of the guest.
    fn write_files(&self, to: &Path) {
        let mut archive = Archive::default();
        ["bin", "dev", "lib", "lib64", "modules", "proc", "sys", "tmp"].iter().for_each(|name| archive.directory(name));
        archive.file("init", &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init"));
        archive.file(&LINKER[1..], Path::new(LINKER));
        APPLETS.iter().for_each(|applet| archive.link(&format!("bin/{applet}"), "busybox"));
        let mut libraries = Vec::new();
        for (name, path) in &self.programs {
            archive.file(&format!("bin/{name}"), path);
            libraries.extend(needs(path));
        }
        libraries.sort_unstable();
        libraries.dedup_by_key(|path| path.file_name().map(ToOwned::to_owned));
        libraries.iter().for_each(|path| archive.file(&format!("lib/{}", path.file_name().unwrap().display()), path));
        for folder in ["drivers/virtio", "drivers/block", "drivers/net", "net/core"] {
            for module in fs::read_dir(self.modules.join(folder)).unwrap().map(|entry| entry.unwrap().path()) {
                let name = module.file_name().unwrap().display().to_string();
                if name.ends_with(".ko") {
                    archive.file(&format!("modules/{name}"), &module);
                }
            }
        }
        archive.write(to);
    }

    /// Starts the guest. It reaches TCP port `port` of this machine, and has the export `virtio` at `socket` as a disk.
    pub fn boot(&self, folder: &Path, port: u16, socket: &Path) -> Machine {
        let files = folder.join("files.cpio");
        self.write_files(&files);
        let disk = format!("driver=nbd,node-name=disk,server.type=unix,server.path={},export=virtio,reconnect-delay=600", socket.display());
        let mut command = Command::new(&self.qemu);
        command.env("LD_LIBRARY_PATH", libraries());
        for folder in [ROOT, ""] {
            command.args(["qemu", "seabios"].iter().flat_map(|data| ["-L".to_owned(), format!("{folder}/usr/share/{data}")]));
        }
        command
            .args(["-accel", "tcg", "-machine", "q35", "-cpu", "max", "-smp", "1", "-m", "1024", "-no-user-config", "-nodefaults"])
            .args(["-display", "none", "-no-reboot", "-serial", "stdio"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&files)
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable port={port}")])
            .args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="])
            .args(["-blockdev", &disk, "-device", "virtio-blk-pci,drive=disk"]);
        Machine::start(command)
    }
}

/// A running guest; killed when dropped.
pub struct Machine {
    child: Child,
    keyboard: ChildStdin,
    console: Receiver<String>,
    /// What was on the console.
    shown: String,
    deadline: Instant,
}

impl Machine {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (lines, console) = channel();
        std::thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                    break;
                }
            }
        });
        let keyboard = child.stdin.take().unwrap();
        Self { child, keyboard, console, shown: String::new(), deadline: Instant::now() + PATIENCE }
    }

    /// Waits for a line that begins so; answers the rest of it. Panics when the guest tells of a failure, ends or takes too long.
    pub fn await_line(&mut self, begin: &str) -> String {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let line = match self.console.recv_timeout(left) {
                Ok(line) => line,
                Err(error) => panic!("waiting for '{begin}': {error}; the console:\n{}", self.shown),
            };
            self.shown.push_str(&format!("{line}\n"));
            if std::env::var_os("VOLFORK_GUEST_CONSOLE").is_some() {
                crate::tell(&format!("{:3} {line}", (PATIENCE - left).as_secs()));
            }
            assert!(!line.starts_with("FAILED") && !line.contains("panic"), "the console:\n{}", self.shown);
            if let Some(rest) = line.strip_prefix(begin) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Types a line.
    pub fn say(&mut self, line: &str) {
        writeln!(self.keyboard, "{line}").unwrap();
    }

    /// Waits until it has switched itself off; answers what was on its console.
    pub fn end(mut self) -> String {
        while let Ok(line) = self.console.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) {
            self.shown.push_str(&format!("{line}\n"));
        }
        std::mem::take(&mut self.shown)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
