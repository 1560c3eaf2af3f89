// Package faultnet is a network in memory whose faults a test commands: partitions
// per directed pair of nodes, delays, reset connections, healing. It serves
// clusters that run inside one test process: each node gets a Stream (what
// consensus.Config.Stream wants), and calls that don't go through a Stream, such as
// HTTP between nodes, ask Blocked before they are made.
//
// It behaves as TCP does over a network that loses packets: while a direction is
// blocked, what was written arrives neither then nor ever out of order, but after
// the block is lifted; a connection that nobody gave up survives a partition, and
// so may an answer that was under way when the partition began. That is the hard
// case for a leader that trusts old answers.
//
// Randomness (jitter, resets) comes from the seed given to New. Timing comes from
// the real clock and the scheduler, so a seed repeats the faults, not the run.
//
// It is for tests only and knows nothing of Raft. All methods are safe for
// concurrent use.
package faultnet
