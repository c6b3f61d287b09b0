//! Bodies of answers: whole, or an event stream fed by the engine.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{connection::Busy, stream::EventStream};

/// The connection is cut here; hyper closes it without an end of the body.
#[derive(Debug, thiserror::Error)]
#[error("cut on order")]
pub(crate) struct Cut;

/// What goes out.
pub(crate) enum Content {
    Whole(Bytes),
    Stream(Box<EventStream>),
}

/// A body that keeps its connection marked busy until it is out.
pub(crate) struct AnswerBody {
    content: Option<Content>,
    busy: Option<Busy>,
}

impl AnswerBody {
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self {
            content: Some(Content::Whole(bytes.into())),
            busy: None,
        }
    }

    pub(crate) fn stream(stream: EventStream) -> Self {
        Self {
            content: Some(Content::Stream(Box::new(stream))),
            busy: None,
        }
    }

    /// Hands over the mark that the connection is busy.
    pub(crate) fn holding(mut self, busy: Busy) -> Self {
        self.busy = Some(busy);
        self
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let frame = match &mut self.content {
            None => return Poll::Ready(None),
            Some(Content::Stream(stream)) => match stream.poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(frame)) => return Poll::Ready(Some(frame.map(Frame::data))),
                Poll::Ready(None) => None,
            },
            Some(Content::Whole(bytes)) if bytes.is_empty() => None,
            Some(Content::Whole(bytes)) => Some(Ok(Frame::data(std::mem::take(bytes)))),
        };
        self.content = None;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            None => true,
            Some(Content::Whole(bytes)) => bytes.is_empty(),
            Some(Content::Stream(_)) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            None => SizeHint::with_exact(0),
            Some(Content::Whole(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Some(Content::Stream(_)) => SizeHint::default(),
        }
    }
}
