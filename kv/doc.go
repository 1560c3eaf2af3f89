// Package kv is Sett's vocabulary: keys, values, revisions, operations,
// consistency levels, members and errors. Every other package speaks it, so that
// two packages can talk without knowing each other.
//
// It holds types and the small pure functions on them. It does no I/O, starts no
// goroutine and imports the standard library only.
//
// Words: a revision is the store's clock; an index is a position in the Raft log;
// a server is a row of the Raft configuration (named by a UUID); a member is what
// people see (named by its id).
package kv
