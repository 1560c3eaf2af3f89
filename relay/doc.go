// Package relay carries proposals from a follower to the leader, many to a packet, and
// the state machine's answers back.
//
// A follower has one stream to the leader, opened when it is first needed and kept as
// long as the same leader leads. It begins as an HTTP request that asks for an upgrade
// and goes on with frames, each one of
//
//	uvarint length of what follows
//	proposal: uvarint number · uvarint budget in ms · command
//	answer:   uvarint number · kind · what the kind says
//
// Answers come in any order. The package knows neither commands nor results: both are
// bytes to it. ADR 0013 says why it exists.
//
// Invariant 24: a proposal whose frame may have left this process and that has no answer
// is of unknown outcome; nothing is ever sent twice.
package relay
