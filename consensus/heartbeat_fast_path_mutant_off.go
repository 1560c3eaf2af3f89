//go:build !mutant_heartbeat_fast_path

package consensus

const mutantHeartbeatFastPath = false
