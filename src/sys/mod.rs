
pub(crate) mod memfd;
