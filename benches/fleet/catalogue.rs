//! Images that share base layers, and snapshots with the blocks that a machine reads first.

use rand_distr::{Distribution, LogNormal, Zipf};
use rand_pcg::Pcg64;
use roaring::RoaringBitmap;
use volfork::content::{Digest, Image, ImageLayer};

use crate::random::{below, chance};

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
pub const BLOCK_BYTES: u32 = 4096;

/// A snapshot that machines are forked from.
#[derive(Clone, Debug)]
pub struct Template {
    pub identity: String,
    pub size_bytes: u64,
    /// Blocks that a machine reads before it is ready.
    pub first: RoaringBitmap,
}

/// An application: all its machines are alike.
#[derive(Clone, Debug)]
pub struct App {
    pub name: String,
    pub image: Image,
    /// Numbers of the layers of the image.
    pub layers: Vec<u32>,
    /// Number of the snapshot that its volumes are forked from, if they are.
    pub template: Option<u32>,
    pub cpus: u32,
    pub memory_bytes: u64,
}

/// All applications, the most popular first; behind them those of the bursts, which nobody has started before.
#[derive(Debug)]
pub struct Catalogue {
    pub layers: Vec<ImageLayer>,
    pub templates: Vec<Template>,
    pub apps: Vec<App>,
    popularity: Zipf<f64>,
}

/// How large a catalogue is.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub apps: usize,
    pub bursts: usize,
    /// Exponent of Zipf's law of the popularity.
    pub skew: f64,
    /// Share of the applications whose volumes are forked from a snapshot.
    pub forks: f64,
}

impl Catalogue {
    pub fn new(sizes: Sizes, random: &mut Pcg64) -> Self {
        let popularity = Zipf::new(sizes.apps as f64, sizes.skew).expect("a number of applications and an exponent");
        let mut catalogue = Self { layers: Vec::new(), templates: Vec::new(), apps: Vec::new(), popularity };
        let bases: Vec<Vec<u32>> = (0..30).map(|_| catalogue.base(random)).collect();
        // Bases are as unequally popular as images are.
        let which = Zipf::new(bases.len() as f64, 1.0).expect("a number of bases");
        for number in 0..sizes.apps + sizes.bursts {
            let mut layers = bases[which.sample(random) as usize - 1].clone();
            if number < sizes.apps {
                layers.extend(catalogue.own_layers(random));
            } else {
                layers.extend([1200 * MIB, 300 * MIB].map(|bytes| catalogue.layer(bytes)));
            }
            let template = (number < sizes.apps && chance(random, sizes.forks)).then(|| catalogue.template(random));
            let cpus = if number < sizes.apps { 1 << below(random, 3) } else { 2 };
            catalogue.app(number, layers, template, cpus);
        }
        catalogue
    }

    /// An application by popularity.
    pub fn draw(&self, random: &mut Pcg64) -> u32 {
        self.popularity.sample(random) as u32 - 1
    }

    fn layer(&mut self, bytes: u64) -> u32 {
        let number = self.layers.len() as u32;
        self.layers.push(ImageLayer { digest: Digest::of(format!("layer {number}").as_bytes()), bytes });
        number
    }

    /// A distribution, and perhaps a language and a framework on it.
    fn base(&mut self, random: &mut Pcg64) -> Vec<u32> {
        let sizes = LogNormal::new((120.0 * MIB as f64).ln(), 1.0).expect("a median and a spread");
        (0..1 + below(random, 4)).map(|_| self.layer(bytes(sizes.sample(random), 2 * MIB, 3 * GIB))).collect()
    }

    /// Layers that only one image has: most are small, one image in 20 brings several GiB for accelerators.
    fn own_layers(&mut self, random: &mut Pcg64) -> Vec<u32> {
        let sizes = LogNormal::new((40.0 * MIB as f64).ln(), 1.5).expect("a median and a spread");
        let mut layers: Vec<u32> = (0..1 + below(random, 6)).map(|_| self.layer(bytes(sizes.sample(random), MIB / 16, 4 * GIB))).collect();
        if chance(random, 0.05) {
            let large = (2 + below(random, 7)) * GIB;
            layers.push(self.layer(large));
        }
        layers
    }

    /// A snapshot of some GiB of which some hundred MiB in runs are needed first.
    fn template(&mut self, random: &mut Pcg64) -> u32 {
        let number = self.templates.len() as u32;
        let size_bytes = (2 << below(random, 4)) * GIB;
        let wanted = (32 + below(random, 481)) * MIB / u64::from(BLOCK_BYTES);
        let blocks = (size_bytes / u64::from(BLOCK_BYTES)) as u32;
        let mut first = RoaringBitmap::new();
        while first.len() < wanted {
            let run = 64 << below(random, 5);
            let from = below(random, u64::from(blocks - run)) as u32;
            first.insert_range(from..from + run);
        }
        self.templates.push(Template { identity: format!("template-{number:05}"), size_bytes, first });
        number
    }

    fn app(&mut self, number: usize, layers: Vec<u32>, template: Option<u32>, cpus: u32) {
        let name = format!("app-{number:05}");
        let of_image = layers.iter().map(|layer| self.layers[*layer as usize]);
        let image = Image::new(format!("registry.example/{name}:latest"), Digest::of(name.as_bytes()), of_image);
        self.apps.push(App { name, image, layers, template, cpus, memory_bytes: u64::from(cpus) * 2 * GIB });
    }
}

fn bytes(drawn: f64, least: u64, most: u64) -> u64 {
    (drawn as u64).clamp(least, most)
}
