//! The clients, and what is measured with them.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What a client does.
enum Work {
    /// fio: pattern, bytes of each request, requests under way, connections.
    Fio(&'static str, &'static str, u32, u32),
    /// nbdcopy from the export to nowhere.
    CopyOut,
    /// nbdcopy from the image to the export.
    CopyIn,
}

/// One line of the table.
pub struct Case {
    name: &'static str,
    work: Work,
}

/// All cases, in the order of the table.
pub fn cases() -> Vec<Case> {
    let fio = |name, pattern, bytes, depth, connections| Case { name, work: Work::Fio(pattern, bytes, depth, connections) };
    vec![
        fio("random read 4k, depth 32", "randread", "4k", 32, 1),
        fio("random write 4k, depth 32", "randwrite", "4k", 32, 1),
        fio("random read 4k, depth 1", "randread", "4k", 1, 1),
        fio("random write 4k, depth 1", "randwrite", "4k", 1, 1),
        fio("random read 256k, depth 16", "randread", "256k", 16, 1),
        fio("random write 256k, depth 16", "randwrite", "256k", 16, 1),
        fio("random read 4k, depth 32, 4 connections", "randread", "4k", 32, 4),
        fio("random write 4k, depth 32, 4 connections", "randwrite", "4k", 32, 4),
        Case { name: "nbdcopy out", work: Work::CopyOut },
        Case { name: "nbdcopy in", work: Work::CopyIn },
    ]
}

impl Case {
    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn unit(&self) -> &'static str {
        match self.work {
            Work::Fio(_, "4k", ..) => "IO/s",
            _ => "MiB/s",
        }
    }

    /// One run; the figure in the case's unit.
    ///
    /// # Errors
    /// The client failed, or printed what cannot be understood.
    pub fn run(&self, uri: &str, image: &Path, seconds: f64) -> io::Result<f64> {
        match self.work {
            Work::Fio(pattern, bytes, depth, connections) => {
                let reads = pattern.ends_with("read");
                let output = Command::new("fio")
                    .args(["--name=doors", "--ioengine=nbd", "--group_reporting", "--output-format=json", "--time_based", "--norandommap"])
                    .args(["--randseed=7", "--refill_buffers=0", "--thread"])
                    .args([format!("--uri={uri}"), format!("--rw={pattern}"), format!("--bs={bytes}"), format!("--iodepth={depth}")])
                    .args([format!("--numjobs={connections}"), format!("--runtime={}ms", (seconds * 1000.0).ceil())])
                    .stderr(Stdio::inherit())
                    .output()?;
                let failed = || io::Error::other(format!("fio failed with {uri}: {}", String::from_utf8_lossy(&output.stdout)));
                if !output.status.success() {
                    return Err(failed());
                }
                let text = String::from_utf8_lossy(&output.stdout);
                // Warnings may come before the JSON.
                let json = text.find('{').map(|start| &text[start..]).unwrap_or_default();
                let found: serde_json::Value = serde_json::from_str(json).map_err(io::Error::other)?;
                let found = &found["jobs"][0][if reads { "read" } else { "write" }];
                let figure = if self.unit() == "IO/s" { found["iops"].as_f64() } else { found["bw_bytes"].as_f64().map(mib) };
                figure.filter(|figure| *figure > 0.0).ok_or_else(failed)
            }
            Work::CopyOut => copy(uri.as_ref(), "null:".as_ref(), image),
            Work::CopyIn => copy(image, uri.as_ref(), image),
        }
    }
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// MiB of the image in a second.
fn copy(from: &Path, to: &Path, image: &Path) -> io::Result<f64> {
    let begin = Instant::now();
    let status = Command::new("nbdcopy").args([from, to]).status()?;
    let seconds = begin.elapsed().as_secs_f64();
    match status.success() {
        true => Ok(mib(std::fs::metadata(image)?.len() as f64) / seconds),
        false => Err(io::Error::other(format!("nbdcopy failed from {} to {}", from.display(), to.display()))),
    }
}
