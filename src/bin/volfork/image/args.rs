//! What is typed behind `image`.

use std::path::PathBuf;

use clap::Subcommand;

use super::ImageRequest;
use crate::args::size;
use crate::request::Request;
use crate::settings::{FileArgument, Plan};

/// The commands behind `image`.
#[derive(Subcommand)]
pub enum ImageCommand {
    /// Make a volume with the files of an image, as an ext4 file system; layers that are here are not fetched again
    Import {
        /// oci:DIR:TAG for an image layout, or HOST/NAME:TAG of a registry; @DIGEST works instead of :TAG
        #[arg(value_name = "REF")]
        reference: String,
        /// Name of the new volume
        name: String,
        /// Size of the volume, at least 128M [default: 8G, or what the image needs]
        #[arg(long, value_parser = size)]
        size: Option<u64>,
        /// Read the layers that are here first, and fetch those that are damaged again. Without, those are whose damage a reader, or
        /// 'scrub', has met since the process that serves the store began
        #[arg(long)]
        verify: bool,
        #[command(flatten)]
        choice: Choice,
    },
    /// Show digest, layers and bytes of an image where it comes from
    Show {
        /// oci:DIR:TAG or HOST/NAME:TAG
        #[arg(value_name = "REF")]
        reference: String,
        #[command(flatten)]
        choice: Choice,
    },
    /// List the images that volumes were made from, and the layers that the store holds
    #[command(visible_alias = "ls")]
    List,
}

/// Which image, and how it is reached.
#[derive(clap::Args)]
pub struct Choice {
    /// System and processor, as in linux/arm64 [default: Linux on this processor]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Speak to the registry without TLS, as is done with one on localhost anyway
    #[arg(long)]
    pub plain_http: bool,
}

/// The process that serves the store works in another directory.
fn absolute(reference: String) -> String {
    match reference.strip_prefix("oci:").map(|rest| std::path::absolute(PathBuf::from(rest))) {
        Some(Ok(path)) => format!("oci:{}", path.display()),
        _ => reference,
    }
}

/// What is to be done, with its label.
pub fn plan(command: ImageCommand) -> (&'static str, Plan) {
    let ask = |request, makes_store| Plan::Ask { request: Request::Image(request), file: FileArgument::None, makes_store };
    match command {
        ImageCommand::Import { reference, name, size, verify, choice } => {
            let Choice { platform, plain_http } = choice;
            let reference = absolute(reference);
            ("image import", ask(ImageRequest::Import { reference, name, size_bytes: size, platform, plain_http, verify }, true))
        }
        ImageCommand::Show { reference, choice } => ("image show", Plan::ShowImage { reference, choice }),
        ImageCommand::List => ("image list", ask(ImageRequest::List, false)),
    }
}
