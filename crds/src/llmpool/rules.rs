//! The longer CEL rules of a pool, built from the lists in [`crate::reserved`] where they need one.

use crate::reserved;

/// Keys of labels and annotations.
const QUALIFIED_NAME: &str =
    "^([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?$";

/// None of these flags in any of the forms that [`reserved`] lists. A word's flag is looked for in the text of all
/// flags, where two hyphens stand only before one: a regular expression for every beginning would cost the API server
/// more than it allows a rule.
pub(super) fn args_without(flags: &[&str]) -> String {
    let flags = flags.join(" --");
    format!(
        "!has(self.args) || self.args.all(arg, !arg.matches('^--[^=. ]') || \
        !'--{flags}'.contains(arg.find('^--[^=. ]+').replace('_', '-')))"
    )
}

/// No variable that the operator sets.
pub(super) fn env() -> String {
    let names = reserved::ENV.map(|name| format!("'{name}'")).join(", ");
    let prefix = reserved::ENV_PREFIX;
    format!(
        "!has(self.env) || self.env.all(one, !(one.name in [{names}]) && !one.name.startsWith('{prefix}'))"
    )
}

/// Keys of `map` (labels or annotations) are qualified names and none of ours.
pub(super) fn pod_metadata(map: &str) -> String {
    let ours = reserved::METADATA_PREFIXES
        .map(|prefix| format!("!key.startsWith('{prefix}')"))
        .join(" && ");
    format!("!has(self.{map}) || self.{map}.all(key, key.matches('{QUALIFIED_NAME}') && {ours})")
}

/// Requests within limits.
pub(super) const WITHIN_LIMITS: &str = "!has(self.requests) || !has(self.limits) || self.requests.all(name, \
    !(name in self.limits) || quantity(string(self.requests[name])).compareTo(quantity(string(self.limits[name]))) <= 0)";

/// The accelerator's resource is not given a second time.
pub(super) const ACCELERATOR_ONCE: &str = "!has(self.accelerator) || !has(self.accelerator.resource) || \
    !((has(self.resources.requests) && self.accelerator.resource in self.resources.requests) || \
    (has(self.resources.limits) && self.accelerator.resource in self.resources.limits))";

/// No colon in the names of an SGLang pool.
pub(super) const SGLANG_NAMES: &str = "self.engine.type != 'SGLang' || (!self.model.name.contains(':') && \
    (!has(self.model.aliases) || self.model.aliases.all(alias, !alias.contains(':'))))";
