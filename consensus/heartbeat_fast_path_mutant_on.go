//go:build mutant_heartbeat_fast_path

package consensus

// A deliberately broken build: the tests must notice.
const mutantHeartbeatFastPath = true
