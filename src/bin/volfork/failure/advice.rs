//! Which command or option ends the trouble that an error tells of.

use volfork::Remedy;

/// What is told behind the message of an error of the engine, in brackets.
pub fn advice(remedy: &Remedy) -> Option<String> {
    Some(match remedy {
        Remedy::CreateStore(path) => format!("'volfork --store {} init'", path.display()),
        Remedy::CheckStore => "'volfork check'".to_owned(),
        Remedy::Scrub => "'volfork scrub'".to_owned(),
        Remedy::ListVolumes => "'volfork list' shows the volumes of this store".to_owned(),
        Remedy::ListSnapshots(volume) => format!("'volfork snapshots {volume}' shows them"),
        Remedy::AwaitVolume(volume) => format!("'volfork show {volume}' says created then"),
        Remedy::DestroySnapshots(volume) => format!("'volfork destroy {volume}@SNAP', or --recursive"),
        Remedy::Disconnect(name) => format!("'volfork disconnect {name}'"),
        Remedy::DestroyByForce => "--force".to_owned(),
        Remedy::ForkLive => "--live".to_owned(),
        Remedy::ShowLeases => "'volfork show' says which forks have leases".to_owned(),
        Remedy::CorrectLabel(key) => format!("or give --{}", key.replace('.', "-")),
        _ => return None,
    })
}
