//! Which last good responses are kept, as it is configured.

use crate::schema::units::{DAY, SEC, show_size};
use crate::schema::{Errors, HeaderName, Int, Path, Set, Size, Span, section};

section! {
    /// The last good response: status 200 to a GET, kept for each route, scheme, host, path and
    /// query, for those who come with the same well-known identity, and a client has no more than
    /// a share of what is kept. Never one with `Set-Cookie`, a token for its client, `Vary: *`, or a
    /// `Cache-Control` of `no-store`, `private` or `no-cache`, and never one to a request with a
    /// body, `Authorization` or `Cache-Control: no-store`, which is not answered from here either;
    /// to a request with a `Cookie` only if it is `public` or varies by it. `must-revalidate`,
    /// `s-maxage` and `stale-if-error` bound its age. A response that is asked for often is kept
    /// anew at most about once a second by each worker.
    Stale {
        /// How old it may be, as its `Age` says.
        max_age: Span<SEC, { 7 * DAY }> = Default("\"5m\"");
        /// Larger bodies are not kept; they pass as they come.
        max_body: Size<1, 1_048_576> = Default("\"64KiB\"");
        /// Request headers that distinguish responses, besides those of the response's own `Vary`
        /// and the well-known identities: what tells clients apart behind your authentication.
        vary: Set<HeaderName, 0, 16> = Default("[]");
        /// The responses are the same for all clients: headers like `X-API-Key`, `X-Auth-Token` and
        /// `X-Forwarded-Client-Cert` do not tell them apart. Those to requests with `Authorization`
        /// or a `Cookie` stay as they are.
        public: bool = Default("false");
        /// The most responses kept; the least recently used goes first.
        max_entries: Int<1, 65_536> = Default("1024");
        /// The most bytes kept, headers and keys included, over all workers: at least `max_body`
        /// and 16 KiB.
        max_bytes: Size<1, { 1 << 30 }> = Default("\"16MiB\"");
    }
}

impl Stale {
    /// The most bytes that a response takes beside its body: its key, its headers and those that it
    /// varies by.
    pub const HEAD: usize = 16 * 1024;

    /// Reports the errors that span its fields.
    pub(crate) fn check(&self, at: &Path<'_>, errors: &mut Errors) {
        let least = self.max_body.saturating_add(Self::HEAD);
        // Where one of them was rejected, it is zero.
        if self.max_body > 0 && self.max_bytes > 0 && self.max_bytes < least {
            let want = ["at least ", &show_size(least), ": max_body and 16KiB"].concat();
            errors.refuse_text(&at.key("max_bytes"), &show_size(self.max_bytes), &want);
        }
    }
}
