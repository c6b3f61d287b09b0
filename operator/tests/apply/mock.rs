//! An API server in memory: enough of get, create, replace, apply, status, scale and delete for the operator's calls.
//! It records every request that is not a read, and can be told to hang on a path.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::Notify;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    writes: Vec<(String, String, Value)>,
    hang: Option<String>,
    refusals: Vec<(String, u16)>,
    ending: bool,
    denied: Vec<(String, String)>,
    version: u64,
}

/// The API server.
#[derive(Default)]
pub(crate) struct Mock {
    state: Mutex<State>,
    changed: Notify,
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn refusal(code: u16, reason: &str) -> (StatusCode, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": reason});
    (StatusCode::from_u16(code).unwrap(), status)
}

/// What the API server says to whoever makes an object in a namespace that is being deleted.
fn ending() -> (StatusCode, Value) {
    let (code, mut status) = refusal(403, "Forbidden");
    status["details"] =
        json!({"causes": [{"reason": "NamespaceTerminating", "message": "is being terminated"}]});
    (code, status)
}

/// What the API server says to whoever lacks a right.
fn forbidden(verb: &str, plural: &str) -> (StatusCode, Value) {
    let (code, mut status) = refusal(403, "Forbidden");
    status["message"] = json!(format!(
        "{plural} is forbidden: User \"operator\" cannot {verb} resource \"{plural}\""
    ));
    (code, status)
}

impl State {
    /// Whether the right to `verb` a resource is granted.
    fn allows(&self, verb: &str, plural: &str) -> bool {
        !self
            .denied
            .iter()
            .any(|(denied, of)| denied == verb && of == plural)
    }

    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(self.version.to_string());
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{}", self.version));
        }
        if metadata["generation"].is_null() {
            metadata["generation"] = json!(1);
        }
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn answer(&mut self, method: &Method, path: &str, body: &Value) -> (StatusCode, Value) {
        let (object_path, sub) = match path.rsplit_once('/') {
            Some((object, sub @ ("status" | "scale"))) => (object, Some(sub)),
            _ => (path, None),
        };
        let refused = |(part, _): &(String, u16)| *method != Method::GET && path.contains(part.as_str());
        if let Some(index) = self.refusals.iter().position(refused) {
            let (_, code) = self.refusals.remove(index);
            return refusal(code, "Refused");
        }
        if path.ends_with("/selfsubjectaccessreviews") {
            let asked = &body["spec"]["resourceAttributes"];
            let text = |field: &str| asked[field].as_str().unwrap_or_default();
            let mut review = body.clone();
            review["status"] = json!({"allowed": self.allows(text("verb"), text("resource"))});
            return (StatusCode::CREATED, review);
        }
        if let Some((_, plural)) = path.rsplit_once('/')
            && *method == Method::GET
            && !self.allows("list", plural)
        {
            return forbidden("list", plural);
        }
        let current = self.objects.get(object_path).cloned();
        match (method.as_str(), current, sub) {
            ("GET", Some(object), _) => (StatusCode::OK, object),
            ("GET", None, _) => refusal(404, "NotFound"),
            ("POST", _, _) | ("PATCH", None, None) if self.ending => ending(),
            ("POST", _, _) => {
                let name = body["metadata"]["name"].as_str().unwrap().to_owned();
                (
                    StatusCode::CREATED,
                    self.store(&format!("{path}/{name}"), body.clone()),
                )
            }
            ("PUT", Some(object), _) => {
                if body["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                    return refusal(409, "Conflict");
                }
                (StatusCode::OK, self.store(object_path, body.clone()))
            }
            ("PATCH", Some(mut object), sub) => {
                let version = &body["metadata"]["resourceVersion"];
                if !version.is_null() && *version != object["metadata"]["resourceVersion"] {
                    return refusal(409, "Conflict");
                }
                match sub {
                    Some("scale") => object["spec"]["replicas"] = body["spec"]["replicas"].clone(),
                    Some(_) => object["status"] = body["status"].clone(),
                    None => merge(&mut object, body),
                }
                let stored = self.store(object_path, object);
                (
                    StatusCode::OK,
                    if sub == Some("scale") {
                        body.clone()
                    } else {
                        stored
                    },
                )
            }
            ("PATCH", None, None) => (StatusCode::CREATED, self.store(object_path, body.clone())),
            ("DELETE", Some(object), _) => {
                self.objects.remove(object_path);
                (StatusCode::OK, object)
            }
            _ => refusal(404, "NotFound"),
        }
    }
}

impl Mock {
    /// A client of it.
    pub(crate) fn client(self: &Arc<Self>) -> Client {
        let mock = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let mock = Arc::clone(&mock);
            async move { Ok::<_, std::convert::Infallible>(mock.serve(request).await) }
        });
        Client::new(service, "default")
    }

    async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let bytes: Bytes = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let path = parts.uri.path().to_owned();
        if self
            .state
            .lock()
            .unwrap()
            .hang
            .as_ref()
            .is_some_and(|part| path.contains(part.as_str()))
        {
            std::future::pending::<()>().await;
        }
        let (status, answer) = {
            let mut state = self.state.lock().unwrap();
            if parts.method != Method::GET {
                state
                    .writes
                    .push((parts.method.to_string(), path.clone(), body.clone()));
            }
            state.answer(&parts.method, &path, &body)
        };
        self.changed.notify_waiters();
        Response::builder()
            .status(status)
            .body(Body::from(serde_json::to_vec(&answer).unwrap()))
            .unwrap()
    }

    /// Requests whose path contains `part` get no answer from now on.
    pub(crate) fn hang(&self, part: &str) {
        self.state.lock().unwrap().hang = Some(part.to_owned());
    }

    /// The next write whose path contains `part` is refused with this status.
    pub(crate) fn refuse_once(&self, part: &str, code: u16) {
        self.state.lock().unwrap().refusals.push((part.to_owned(), code));
    }

    /// These rights, verb and resource, are not granted; all others are.
    pub(crate) fn deny(&self, rights: &[(&str, &str)]) {
        let owned = |(verb, plural): &(&str, &str)| ((*verb).to_owned(), (*plural).to_owned());
        self.state.lock().unwrap().denied = rights.iter().map(owned).collect();
    }

    /// The namespace is being deleted from now on: nothing can be made in it.
    pub(crate) fn end_namespace(&self) {
        self.state.lock().unwrap().ending = true;
    }

    /// Takes an object away, unrecorded.
    pub(crate) fn take(&self, path: &str) {
        self.state.lock().unwrap().objects.remove(path);
    }

    /// Puts an object there, unrecorded.
    pub(crate) fn put(&self, path: &str, object: Value) -> Value {
        self.state.lock().unwrap().store(path, object)
    }

    /// The object at a path.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    /// All objects whose path begins so.
    pub(crate) fn list(&self, prefix: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state
            .objects
            .iter()
            .filter(|(path, _)| path.starts_with(prefix))
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Takes the writes recorded so far: method, path, body. Events are left out.
    pub(crate) fn writes(&self) -> Vec<(String, String, Value)> {
        let mut writes = std::mem::take(&mut self.state.lock().unwrap().writes);
        writes.retain(|(_, path, _)| !path.contains("/events"));
        writes
    }

    /// Reasons of the events published so far.
    pub(crate) fn events(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let events = state
            .writes
            .iter()
            .filter(|(method, path, _)| method == "POST" && path.contains("/events"));
        events
            .filter_map(|(_, _, body)| body["reason"].as_str().map(str::to_owned))
            .collect()
    }

    /// Waits until a write that `wanted` accepts was recorded; fails after ten seconds.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&(String, String, Value)) -> bool) -> Value {
        let waiting = async {
            loop {
                let notified = self.changed.notified();
                let found = self
                    .state
                    .lock()
                    .unwrap()
                    .writes
                    .iter()
                    .find(|write| wanted(write))
                    .cloned();
                match found {
                    Some((_, _, body)) => return body,
                    None => notified.await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waiting)
            .await
            .unwrap_or_else(|_| panic!("no {what}"))
    }
}
