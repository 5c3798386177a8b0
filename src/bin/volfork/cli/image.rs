//! Arguments of `image`.

use clap::Subcommand;

use crate::request::size::size;

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
        choice: ImageChoice,
    },
    /// Show digest, layers and bytes of an image where it comes from
    Show {
        /// oci:DIR:TAG or HOST/NAME:TAG
        #[arg(value_name = "REF")]
        reference: String,
        #[command(flatten)]
        choice: ImageChoice,
    },
    /// List the images that volumes were made from, and the layers that the store holds
    #[command(visible_alias = "ls")]
    List,
}

/// Which image, and how it is reached.
#[derive(clap::Args)]
pub struct ImageChoice {
    /// System and processor, as in linux/arm64 [default: Linux on this processor]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Speak to the registry without TLS, as is done with one on localhost anyway
    #[arg(long)]
    pub plain_http: bool,
}
