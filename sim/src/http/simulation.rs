//! `/sim`: what only a simulator has. Always there; the ledger, faults, and a reset.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::json;

use super::{
    App, Control,
    body::AnswerBody,
    control::query,
    error::{ApiError, Shape},
    failure, json_response, json_value,
};
use crate::{driver::Command, fault::Fault};

/// Entries of the ledger in an answer unless `limit` says otherwise.
const DEFAULT_LIMIT: usize = 10_000;

/// An endpoint under `/sim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Ledger,
    Totals,
    Fault,
    Reset,
}

/// Finds an endpoint.
pub(super) fn door(path: &str) -> Option<(Door, &'static str, &'static [Method])> {
    const GET: &[Method] = &[Method::GET];
    const POST: &[Method] = &[Method::POST];
    Some(match path {
        "/sim/ledger" => (Door::Ledger, "/sim/ledger", GET),
        "/sim/totals" => (Door::Totals, "/sim/totals", GET),
        "/sim/fault" => (Door::Fault, "/sim/fault", POST),
        "/sim/reset" => (Door::Reset, "/sim/reset", POST),
        _ => return None,
    })
}

/// Answers an endpoint. `/sim/ledger?from=SEQUENCE&limit=N` gives the newest N entries from a number on.
pub(super) fn enter(app: &App, door: Door, text: &str, body: &Bytes) -> Response<AnswerBody> {
    match door {
        Door::Ledger => {
            let from = query(text, "from")
                .next()
                .and_then(|value| value.parse().ok())
                .unwrap_or(0);
            let limit = query(text, "limit")
                .next()
                .and_then(|value| value.parse().ok())
                .unwrap_or(DEFAULT_LIMIT);
            // Plain structures of strings and numbers always serialise.
            json_response(serde_json::to_vec(&app.ledger.snapshot(from, limit)).unwrap_or_default())
        }
        Door::Totals => json_response(serde_json::to_vec(&app.ledger.totals()).unwrap_or_default()),
        Door::Reset => {
            apply(app, Fault::Clear {});
            app.ledger.reset();
            json_value(&json!({"status": "reset"}))
        }
        Door::Fault => match read_fault(body) {
            Ok(fault) => {
                apply(app, fault);
                json_value(&json!({"status": "ordered", "fault": fault}))
            }
            Err(error) => failure(&error, Shape::OpenAi),
        },
    }
}

fn read_fault(body: &Bytes) -> Result<Fault, ApiError> {
    let fault: Fault = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("not a fault: {error}"), Some("kind")))?;
    match fault {
        Fault::Status { status, .. } if StatusCode::from_u16(status).is_err() || status < 400 => Err(
            ApiError::bad_request(format!("status {status} is not an error"), Some("status")),
        ),
        Fault::Slow { factor } if !(factor >= 0.0 && factor.is_finite()) => Err(ApiError::bad_request(
            format!("factor {factor} is not a number of at least 0"),
            Some("factor"),
        )),
        _ => Ok(fault),
    }
}

/// Makes a fault happen.
pub(crate) fn apply(app: &App, fault: Fault) {
    app.faults.order(fault);
    // Without a server there is nobody left to tell.
    let tell = |control| drop(app.control.send(control));
    match fault {
        Fault::Clear {} => {
            app.engine.send(Command::Hang(false));
            app.engine.send(Command::Slow(1.0));
            tell(Control::Refuse(false));
        }
        Fault::Hang {} => app.engine.send(Command::Hang(true)),
        Fault::Slow { factor } => app.engine.send(Command::Slow(factor)),
        Fault::Refuse {} => tell(Control::Refuse(true)),
        Fault::Crash { exit_after_ms } => {
            app.die();
            app.engine.send(Command::Crash);
            tell(Control::ExitAfter(exit_after_ms));
        }
        Fault::Unhealthy {}
        | Fault::Scaling {}
        | Fault::Status { .. }
        | Fault::Reset { .. }
        | Fault::Delay { .. }
        | Fault::CutStreamAfter { .. }
        | Fault::ErrorEventAfter { .. }
        | Fault::StallAfter { .. } => {}
    }
}
