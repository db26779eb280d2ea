//! The network in the hands of an attacker: forwards bytes, cuts links, sends the next one elsewhere.

use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

pub struct Proxy {
    pub address: String,
    target: Arc<Mutex<String>>,
    links: Arc<Mutex<Vec<AbortHandle>>>,
    accepting: AbortHandle,
}

impl Proxy {
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let target = Arc::new(Mutex::new(target.to_owned()));
        let links: Arc<Mutex<Vec<AbortHandle>>> = Arc::default();
        let (next, all) = (target.clone(), links.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let target = next.lock().unwrap().clone();
                let link = tokio::spawn(async move {
                    let mut server = TcpStream::connect(target).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
                all.lock().unwrap().push(link.abort_handle());
            }
        });
        Self {
            address,
            target,
            links,
            accepting: accepting.abort_handle(),
        }
    }

    /// Cuts every link; the next connection goes to `target`.
    pub async fn swap(&self, target: &str) {
        *self.target.lock().unwrap() = target.to_owned();
        self.links.lock().unwrap().drain(..).for_each(|link| link.abort());
        // Aborted tasks drop their sockets when the runtime next looks at them.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.links.lock().unwrap().drain(..).for_each(|link| link.abort());
    }
}
