//! An S3 server in this process, on a directory, for the real client.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::sync::Mutex;

const ACCESS_KEY: &str = "an-access-key";
const SECRET_KEY: &str = "a-secret-key";
pub const BUCKET: &str = "fleet-bucket";
/// Where in the bucket the fleet is.
pub const PREFIX: &str = "some/prefix";

/// Serves a bucket from a directory, and answers the variables with which the binary finds it. Its clock is `behind` that of this
/// machine, as far as anybody asks it for the time; one that is endlessly behind does not tell it.
pub fn environment(root: &Path, behind: Duration) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL", format!("http://{}", serve(root, behind))),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
        ("AWS_REGION", "us-east-1".into()),
    ]
}

/// Serves the directories of `root` as buckets, until the process ends.
fn serve(root: &Path, behind: Duration) -> SocketAddr {
    let clock = root.join(BUCKET).join(PREFIX).join("clock");
    std::fs::create_dir(root.join(BUCKET)).unwrap();
    let files = s3s_fs::FileSystem::new(root).unwrap();
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = builder.build();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            // This server looks at a precondition and then writes. One request at a time, so that both are one step, as in S3.
            let gate = Arc::new(Mutex::new(()));
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (service, gate, clock) = (service.clone(), gate.clone(), clock.clone());
                let serialized = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let (service, gate, clock) = (service.clone(), gate.clone(), clock.clone());
                    async move {
                        let _alone = gate.lock().await;
                        let is_asked = request.method() == hyper::Method::HEAD && request.uri().path().ends_with("/clock");
                        if is_asked && !behind.is_zero() && behind != Duration::MAX {
                            std::fs::File::open(&clock).unwrap().set_modified(SystemTime::now() - behind).unwrap();
                        }
                        let mut answer = Service::<hyper::Request<hyper::body::Incoming>>::call(&service, request).await?;
                        if is_asked && behind == Duration::MAX {
                            answer.headers_mut().remove(hyper::header::LAST_MODIFIED);
                        }
                        Ok::<_, s3s::HttpError>(answer)
                    }
                });
                tokio::spawn(async move {
                    // What ends a connection is between it and its client.
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), serialized).await;
                });
            }
        });
    });
    receiver.recv().unwrap()
}
