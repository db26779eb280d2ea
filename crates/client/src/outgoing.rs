//! A call whose request is a stream: messages go out one by one, one answer comes back.

use crate::errors::ClientError;
use crate::link::Link;
use crate::session::AppraisedPeer;
use bastionai_wire::v1::bastion_client::BastionClient;
use std::future::Future;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

/// The open call. Dropped before its end, it resets the stream: the server hears of it at once.
#[derive(Debug)]
pub(crate) struct Outgoing<M, R> {
    peer: AppraisedPeer,
    call: &'static str,
    sender: Option<mpsc::Sender<M>>,
    reply: JoinHandle<Result<Response<R>, Status>>,
}

impl<M: Send + 'static, R: Send + 'static> Outgoing<M, R> {
    /// Opens the call.
    pub(crate) fn begin<F>(
        peer: &AppraisedPeer,
        call: &'static str,
        start: impl FnOnce(BastionClient<Link>, ReceiverStream<M>) -> F,
    ) -> Self
    where
        F: Future<Output = Result<Response<R>, Status>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(MESSAGES_IN_FLIGHT);
        let reply = tokio::spawn(start(peer.client(), ReceiverStream::new(receiver)));
        Self {
            peer: peer.clone(),
            call,
            sender: Some(sender),
            reply,
        }
    }

    /// Sends one message, or says why the server wants no more.
    pub(crate) async fn send(&mut self, message: M) -> Result<(), ClientError> {
        let sender = self.sender.as_ref().ok_or_else(|| self.is_over())?;
        let limit = self.peer.call_timeout();
        match tokio::time::timeout(limit, sender.send(message)).await {
            Ok(Ok(())) => Ok(()),
            // The server hung up before the end: its answer says why.
            Ok(Err(_)) => match self.finish().await {
                Ok(_) => Err(ClientError::protocol(self.call, "it answered before the end")),
                Err(error) => Err(error),
            },
            Err(_) => {
                self.sender = None;
                self.reply.abort();
                Err(ClientError::TimedOut {
                    call: self.call,
                    seconds: limit.as_secs(),
                })
            }
        }
    }

    /// Says that no further message comes, and waits for the answer.
    pub(crate) async fn finish(&mut self) -> Result<R, ClientError> {
        drop(self.sender.take().ok_or_else(|| self.is_over())?);
        let reply = &mut self.reply;
        let joined = async { reply.await.unwrap_or_else(|_| Err(Status::cancelled("given up"))) };
        self.peer.answer(self.call, joined).await
    }

    fn is_over(&self) -> ClientError {
        ClientError::Invalid(format!("this {} has ended; begin another", self.call))
    }
}

impl<M, R> Drop for Outgoing<M, R> {
    fn drop(&mut self) {
        self.reply.abort();
    }
}

/// A few chunks, so that preparing the next and sending overlap.
const MESSAGES_IN_FLIGHT: usize = 4;
