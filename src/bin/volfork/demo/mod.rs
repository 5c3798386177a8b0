//! `volfork demo`: two stores stand for two hosts. An image goes into the first, is served over NBD on the loopback interface, and is
//! forked into the second, which is read and written while it hydrates. At the end checksums show that nothing was mixed up.
//!
//! The fork is taken from the snapshot `disk@fork-point` of host A, so "the source at the moment of the fork" stays readable while
//! host A writes on. Host B keeps its own `disk@as-forked` for the same reason.
mod chance;
mod image;
mod place;
mod proof;
mod report;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use volfork::serve::Listener;
use volfork::store::HydrationControl;
use volfork::{BlockSize, ErrorKind, Store, Volume, format_bytes};

use crate::act::clients::Clients;
use crate::act::execution::execute;
use crate::act::gate::Alone;
use crate::act::transfer::ranges::next_data;
use crate::ask::interrupt::{Interrupt, Interruptible};
use crate::ask::reach;
use crate::cli::arguments::DemoArguments;
use crate::failure::{Failure, Result};
use crate::request::Request;
use crate::request::progress::{Progress, Watcher};
use crate::request::response::Response;
use crate::serve::door::Door;
use crate::settings::Settings;
use crate::show::bar::Bar;

use chance::Random;
use place::Place;
use proof::{Bytes, Expected, checksum, compare, compare_all};
use report::{Report, format_duration, rate};

const DISK: &str = "disk";
const FORK_POINT: &str = "fork-point";
const AS_FORKED: &str = "as-forked";
/// Smallest image that is made.
const IMAGE_BYTES_MIN: u64 = 16 << 20;
/// Reads and writes that are made even if hydration ends sooner.
const READS_MIN: u64 = 200;
const WRITES: u64 = 64;
/// Longest random read.
const READ_BYTES_MAX: u64 = 256 << 10;

/// Runs the demonstration; an error is a failed promise, or an interruption.
pub fn run(settings: &Settings, arguments: DemoArguments) -> Result<()> {
    if arguments.image.is_none() && arguments.size < IMAGE_BYTES_MIN {
        return Err(Failure::new(ErrorKind::InvalidInput, "give at least --size 16M, so that there is something to fork"));
    }
    let place = Place::new(arguments.dir.as_deref(), arguments.keep)?;
    let mut demo = Demo { settings, interrupt: Interrupt::catch()?, report: Report::new(settings), rate: arguments.rate };
    let image = demo.image(&place, &arguments)?;
    let ran = demo.run(&place, &image);
    if arguments.keep {
        demo.report.say("kept", &format!("look around: volfork --store {} list", place.join("host-b").display()))?;
    }
    ran?;
    demo.report.finish()
}

struct Demo<'a> {
    settings: &'a Settings,
    interrupt: Interrupt,
    report: Report,
    rate: Option<u64>,
}

impl Demo<'_> {
    fn image(&mut self, place: &Place, arguments: &DemoArguments) -> Result<PathBuf> {
        if let Some(path) = &arguments.image {
            self.report.say("image", &path.display().to_string())?;
            return Ok(path.clone());
        }
        let path = place.join("image");
        let begun = Instant::now();
        let what = image::make(&path, arguments.size, place.path(), &|| self.interrupt.check())?;
        self.report.say("image", &format!("{}, {what}, made in {}", format_bytes(arguments.size), format_duration(begun.elapsed())))?;
        Ok(path)
    }

    fn run(&mut self, place: &Place, image: &Path) -> Result<()> {
        let open = || File::open(image).map_err(|error| Failure::io(format!("open {}", image.display()), error));
        let (mut expected_a, mut expected_b) = (Expected::new(open()?, 1)?, Expected::new(open()?, 2)?);
        let host_a = self.host(place.join("host-a"))?;
        self.import(&host_a, open()?)?;
        let door = Door::open(&host_a, vec![Listener::parse("127.0.0.1:0")?])?;
        let uri = door.uris_of(&format!("{DISK}@{FORK_POINT}")).pop().unwrap_or_default();
        self.report.say("host A", &format!("serves {uri}"))?;

        let host_b = self.host(place.join("host-b"))?;
        let forked = self.fork(&host_b, &uri, &open()?)?;
        let sides = Sides { a: host_a.volume(DISK)?, b: host_b.volume(DISK)?, host_b: &host_b };
        self.hydrate(&sides, &mut expected_a, &mut expected_b, forked)?;

        // From here on host B is alone, so what it reads it holds.
        door.shut();
        self.verify(&host_a, &sides, &expected_a, &expected_b)?;
        host_b.close()?;
        host_a.close()?;
        Ok(())
    }

    fn host(&self, store: PathBuf) -> Result<Store> {
        reach::create(&Settings { store, ..self.settings.clone() }, BlockSize::DEFAULT, false)
    }

    fn import(&mut self, host_a: &Store, image: File) -> Result<()> {
        let mut watcher = Interruptible { watcher: Bar::new("import", self.settings), interrupt: self.interrupt.clone() };
        let request = Request::Import { name: DISK.into(), raw: false, force: false };
        let moved = match execute(host_a, &Clients::default(), request, Some(image), &Alone, &mut watcher)? {
            Response::Moved(moved) => moved,
            _ => return Err(Failure::new(ErrorKind::Unsupported, "an import answered something else")),
        };
        drop(watcher);
        host_a.create_snapshot(DISK, FORK_POINT)?;
        let took = Duration::from_secs_f64(moved.seconds);
        let text = format!(
            "{}, of it {} data, in {} ({}/s)",
            format_bytes(moved.size_bytes),
            format_bytes(moved.data_bytes),
            format_duration(took),
            format_bytes(rate(moved.data_bytes, took))
        );
        self.report.note("image_bytes", moved.size_bytes);
        self.report.note("data_bytes", moved.data_bytes);
        self.report.note("import_seconds", moved.seconds);
        self.report.say("import", &text)
    }

    /// Forks into host B and reads from the fork at once; answers when the fork was there.
    fn fork(&mut self, host_b: &Store, uri: &str, image: &File) -> Result<Instant> {
        let begun = Instant::now();
        let volume = host_b.fork(uri, DISK)?;
        let took = begun.elapsed();
        let forked = Instant::now();
        if let Some(rate) = self.rate {
            host_b.control_hydration(DISK, &HydrationControl::default().with_rate_bytes_per_second(rate))?;
        }
        self.report.note("fork_seconds", took.as_secs_f64());
        self.report.say("fork", &format!("host B has '{DISK}' after {}", format_duration(took)))?;

        // A place with data, far from where background replication begins.
        let size_bytes = volume.size_bytes();
        let middle = size_bytes / 2 / proof::WRITE_BYTES * proof::WRITE_BYTES;
        let data = next_data(image, middle, size_bytes).map_err(|error| Failure::io("read the image", error))?;
        let offset = data.map_or(0, |range| range.start);
        let mut buffer = vec![0; proof::WRITE_BYTES.min(size_bytes - offset) as usize];
        let begun = Instant::now();
        volume.read_at(&mut buffer, offset)?;
        let first = begun.elapsed();
        let expected = Expected::new(image.try_clone().map_err(|error| Failure::io("read the image", error))?, 0)?;
        compare("the first read of the fork", &volume, &expected, offset, buffer.len() as u64)?;
        self.report.note("first_read_seconds", first.as_secs_f64());
        self.report
            .say("first read", &format!("{} at byte {offset} after {}", format_bytes(buffer.len() as u64), format_duration(first)))?;
        host_b.create_snapshot(DISK, AS_FORKED)?;
        Ok(forked)
    }

    /// Reads the fork and writes to both sides until everything is there.
    fn hydrate(&mut self, sides: &Sides<'_>, expected_a: &mut Expected, expected_b: &mut Expected, forked: Instant) -> Result<()> {
        let mut bar = Interruptible { watcher: Bar::new("hydrate", self.settings), interrupt: self.interrupt.clone() };
        let mut random = Random::new(3);
        let (mut reads, mut read_bytes, mut writes, mut fetched, mut slowest) = (0, 0, 0, 0, Duration::ZERO);
        let mut hydrated: Option<(Duration, u64)> = None;
        while hydrated.is_none() || reads < READS_MIN || writes < WRITES {
            let offset = random.below(expected_b.size_bytes());
            let bytes = (1 + random.below(READ_BYTES_MAX)).min(expected_b.size_bytes() - offset);
            let begun = Instant::now();
            compare("a read of the fork", &sides.b, expected_b, offset, bytes)?;
            slowest = slowest.max(begun.elapsed());
            reads += 1;
            read_bytes += bytes;
            if reads % 3 == 0 && writes < WRITES {
                sides.write(expected_a, expected_b, &mut random)?;
                writes += 1;
            }
            if hydrated.is_none() && sides.host_b.wait_hydrated(DISK, Duration::ZERO)? {
                hydrated = Some((forked.elapsed(), reads));
            }
            if reads % 16 == 0 {
                fetched = fetched.max(sides.tell(&mut bar)?);
            }
        }
        sides.a.flush()?;
        sides.b.flush()?;
        drop(bar);
        let (took, reads_before) = hydrated.unwrap_or_default();
        // The counter may end with the source.
        fetched = fetched.max(sides.host_b.show(DISK)?.hydration.bytes_fetched);
        self.report.note("reads", reads);
        self.report.note("reads_while_hydrating", reads_before);
        self.report.note("slowest_read_seconds", slowest.as_secs_f64());
        self.report.note("writes_each_side", writes);
        self.report.note("hydrated_seconds", took.as_secs_f64());
        self.report.note("fetched_bytes", fetched);
        let text = format!(
            "{} at random, {reads_before} of {reads} while hydrating, slowest {}, all as expected",
            format_bytes(read_bytes),
            format_duration(slowest)
        );
        self.report.say("reads", &text)?;
        self.report.say("writes", &format!("{writes} on each side after the fork"))?;
        let text = format!(
            "{} fetched, {} after the fork ({}/s)",
            format_bytes(fetched),
            format_duration(took),
            format_bytes(rate(fetched, took))
        );
        self.report.say("hydrated", &text)
    }

    fn verify(&mut self, host_a: &Store, sides: &Sides<'_>, expected_a: &Expected, expected_b: &Expected) -> Result<()> {
        let begun = Instant::now();
        let interrupt = self.interrupt.clone();
        let going_on = || interrupt.check();
        let origin = host_a.snapshot(DISK, FORK_POINT)?;
        let copy = sides.host_b.snapshot(DISK, AS_FORKED)?;
        let (origin_sum, copy_sum) = std::thread::scope(|scope| {
            let origin_sum = scope.spawn(|| checksum(&origin, &going_on));
            let copy_sum = checksum(&copy, &going_on);
            (origin_sum.join().unwrap_or_else(|_| Err(Failure::interrupted("a checksum thread ended"))), copy_sum)
        });
        let (origin_sum, copy_sum) = (origin_sum?, copy_sum?);
        if origin_sum != copy_sum {
            let message = format!("the fork is not the source at the moment of the fork: sha256 {copy_sum} instead of {origin_sum}");
            return Err(Failure::new(ErrorKind::Corrupt, message));
        }
        self.report.say("same", &format!("fork and source at the moment of the fork: sha256 {origin_sum}"))?;
        compare_all("host A after its writes", &sides.a, expected_a, &going_on)?;
        compare_all("host B after its writes", &sides.b, expected_b, &going_on)?;
        let places = expected_a.written().chain(expected_b.written()).count();
        self.report.say("apart", &format!("neither side sees the other's writes ({places} places, and every byte around them)"))?;
        let took = begun.elapsed();
        self.report.note("sha256", origin_sum);
        self.report.note("verify_seconds", took.as_secs_f64());
        self.report.say("verified", &format!("in {}, with host A's server gone", format_duration(took)))
    }
}

/// The two volumes, once there are two.
struct Sides<'a> {
    a: Volume,
    b: Volume,
    host_b: &'a Store,
}

impl Sides<'_> {
    fn write(&self, expected_a: &mut Expected, expected_b: &mut Expected, random: &mut Random) -> Result<()> {
        for (volume, expected) in [(&self.a, expected_a), (&self.b, expected_b)] {
            let (offset, bytes) = expected.next_write(random);
            volume.write_at(&bytes, offset)?;
        }
        Ok(())
    }

    /// Tells how far hydration is; answers the bytes fetched so far.
    fn tell(&self, watcher: &mut dyn Watcher) -> Result<u64> {
        let info = self.host_b.show(DISK)?;
        let done = info.size_bytes.saturating_sub(info.hydration.bytes_missing);
        watcher.tell(Progress { note: info.hydration.last_error, ..Progress::bytes(done, Some(info.size_bytes)) })?;
        Ok(info.hydration.bytes_fetched)
    }
}
