//! Scores of other schedulers, computed with their own integer arithmetic.
//!
//! Kubernetes: `pkg/scheduler/framework/plugins` of its source, `imagelocality` and `noderesources`. LRScheduler: arXiv 2506.03694
//! and the `score.go` that was published with it.

use super::rows::Share;
use crate::units::{real, whole};

const MIB: u64 = 1024 * 1024;
/// Below it, Kubernetes takes an image for as good as absent.
const IMAGE_BYTES_MIN: u64 = 23 * MIB;
/// Above it, for each container, more bytes give no more points.
const IMAGE_BYTES_MAX: u64 = 1000 * MIB;
/// The most points a plugin gives.
pub(super) const POINTS_MAX: u64 = 100;

/// Points of Kubernetes' `ImageLocality` for a machine of `containers` containers on one node: `images` are those of their images
/// that the node has, each as its bytes and the number of nodes that have it; `nodes` is the number of all nodes.
pub fn image_locality(images: &[(u64, u64)], containers: u32, nodes: u64) -> u64 {
    let scaled = |&(bytes, holders): &(u64, u64)| whole(real(bytes) * (real(holders) / real(nodes.max(1))));
    let sum = images.iter().map(scaled).fold(0, u64::saturating_add);
    let most = IMAGE_BYTES_MAX * u64::from(containers.max(1));
    POINTS_MAX * (sum.clamp(IMAGE_BYTES_MIN, most) - IMAGE_BYTES_MIN) / (most - IMAGE_BYTES_MIN)
}

/// An image's name as Kubernetes compares it: with a tag.
pub(super) fn normal_name(reference: &str) -> String {
    // A colon before the last slash belongs to a port.
    if reference.rfind(':').unwrap_or(0) <= reference.rfind('/').unwrap_or(0) {
        return format!("{reference}:latest");
    }
    reference.to_owned()
}

/// Points of `NodeResourcesFit` with the strategy `LeastAllocated`: the free share after the request, each resource alike.
pub(super) fn least_allocated(shares: [(Share, u64); 2]) -> u64 {
    let mut points = 0;
    let mut resources = 0;
    for (share, more) in shares.into_iter().filter(|(share, _)| share.capacity > 0) {
        let free = u128::from(share.free.saturating_sub(more));
        // Not more than the most, because not more is free than there is.
        points += u64::try_from(free * u128::from(POINTS_MAX) / u128::from(share.capacity)).unwrap_or(POINTS_MAX);
        resources += 1;
    }
    points / resources.max(1)
}

/// Points of `NodeResourcesBalancedAllocation`: processors and memory should be equally full.
pub(super) fn balanced_allocation(shares: [(Share, u64); 2]) -> u64 {
    let [first, second] = shares;
    if first.0.capacity == 0 || second.0.capacity == 0 {
        return POINTS_MAX;
    }
    let deviation = (first.0.fullness(first.1) - second.0.fullness(second.1)).abs() / 2.0;
    whole((1.0 - deviation) * real(POINTS_MAX))
}

/// Points of LRScheduler's layer plugin: half of the percentage of the image's bytes that is there, doubled if more than 10 MiB are
/// there and processors (less than 60 % full) and memory are about equally full, halved otherwise.
pub fn layer_score(bytes_there: u64, bytes_in_all: u64, cpu_fullness: f64, memory_fullness: f64) -> u64 {
    if bytes_in_all == 0 {
        return 0;
    }
    let points = whole(real(bytes_there) / real(bytes_in_all) * 100.0 / 2.0);
    let balanced = ((cpu_fullness - memory_fullness) / 2.0).abs() < 0.16;
    let weight = if bytes_there / MIB > 10 && balanced && cpu_fullness < 0.6 { 2.0 } else { 0.5 };
    whole(real(points) * weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_locality_is_exact() {
        let mib = MIB;
        // 30 MiB are 7 MiB of the 977 that give points.
        assert_eq!(image_locality(&[(1000 * mib, 3)], 1, 100), 0);
        assert_eq!(image_locality(&[(10_000_000_000, 1)], 1, 100), 7);
        assert_eq!(image_locality(&[(100_000_000_000, 1)], 1, 1000), 7);
        assert_eq!(image_locality(&[(70_000_000, 1)], 1, 2), 1);
        // In binary units the same image is 7 % larger, which is one point more.
        assert_eq!(image_locality(&[(10_000 * mib, 1)], 1, 100), 7);
        assert_eq!(image_locality(&[(10 << 30, 1)], 1, 100), 8);
        // From the plugin's own tests: 40 MB and 300 MB of two containers' images on one of two nodes each; caps.
        assert_eq!(image_locality(&[(40 * mib, 1), (300 * mib, 1)], 2, 2), 100 * (170 - 23) / (2000 - 23));
        assert_eq!(image_locality(&[(2000 * mib, 2)], 1, 2), 100);
        assert_eq!(image_locality(&[(2000 * mib, 2)], 2, 2), 100);
        assert_eq!(image_locality(&[(1 << 40, 2)], 3, 2), 100);
        assert_eq!(image_locality(&[], 1, 100), 0);
        assert_eq!(image_locality(&[(u64::MAX, u64::MAX)], 1, 0), 100, "nonsense stays within the range");
    }

    #[test]
    fn image_names_get_a_tag() {
        for (name, normal) in [
            ("root", "root:latest"),
            ("root:tag", "root:tag"),
            ("gcr.io:5000/root", "gcr.io:5000/root:latest"),
            ("root@sha256:abc", "root@sha256:abc"),
        ] {
            assert_eq!(normal_name(name), normal);
        }
    }

    #[test]
    fn resources_give_kubernetes_points() {
        // The example of the plugin's tests: 3000 of 4000 and 5000 of 10000 in use after the request: (25 + 50) / 2, and
        // 100 * (1 - |0.75 - 0.5| / 2).
        let shares = [(Share { capacity: 4000, free: 4000 }, 3000), (Share { capacity: 10000, free: 10000 }, 5000)];
        assert_eq!((least_allocated(shares), balanced_allocation(shares)), (37, 87));
        let nothing = [(Share::default(), 0); 2];
        assert_eq!((least_allocated(nothing), balanced_allocation(nothing)), (0, 100));
    }

    #[test]
    fn layer_scores_follow_the_paper() {
        let mib = MIB;
        assert_eq!(layer_score(50 * mib, 100 * mib, 0.5, 0.5), 50, "25 points, doubled");
        assert_eq!(layer_score(50 * mib, 100 * mib, 0.6, 0.5), 12, "too busy: halved and cut");
        assert_eq!(layer_score(50 * mib, 100 * mib, 0.1, 0.5), 12, "out of balance");
        assert_eq!(layer_score(10 * mib, 20 * mib, 0.5, 0.5), 12, "too little to matter");
        assert_eq!(layer_score(11 * mib, 11 * mib, 0.5, 0.5), 100);
        assert_eq!(layer_score(0, 0, 0.0, 0.0), 0);
    }
}
