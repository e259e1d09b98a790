//! Sessions of the NBD front against a volume in memory: requests, bounds, refusals, and every way to end.

mod bounds;
mod direct;
mod endings;
mod opening;
mod parts;
mod requests;
mod support;
