package kv

import "time"

// Roles of a server, as the HTTP API spells them.
const (
	RoleLeader    = "leader"
	RoleFollower  = "follower"
	RoleCandidate = "candidate"
)

// States of a member, as the HTTP API spells them.
const (
	StateAlive   = "alive"
	StateSuspect = "suspect"
	StateGone    = "gone"
)

// Member is a server of the cluster as people see it.
type Member struct {
	ID            string `json:"id"`
	ServerID      string `json:"server_id"`
	RaftAddr      string `json:"raft_addr"`
	HTTPAddr      string `json:"http_addr"`
	GossipAddr    string `json:"gossip_addr"`
	Voter         bool   `json:"voter"`
	State         string `json:"state"`
	Role          string `json:"role"`
	LastContactMS int64  `json:"last_contact_ms"` // -1: unknown
	AppliedIndex  uint64 `json:"applied_index"`
	Lag           uint64 `json:"lag"` // entries behind the leader's commit index
	Version       string `json:"version"`
}

// ClusterInfo is the answer to GET /v1/cluster.
type ClusterInfo struct {
	ID       string          `json:"id"`
	Name     string          `json:"name"`
	Leader   string          `json:"leader"`
	Term     uint64          `json:"term"`
	Members  []Member        `json:"members"`
	Settings ClusterSettings `json:"settings"`
}

// ClusterSettings are the settings that a client can observe; replicated, equal on
// every node. Sizes are in bytes. HistoryRetentionBytes 0 means no bound.
type ClusterSettings struct {
	HistoryRetention      time.Duration
	HistoryRetentionBytes uint64
	MaxKeyBytes           uint64
	MaxValueBytes         uint64
	MaxRequestBytes       uint64
}

// Bounds of the cluster settings: properties of the store, not choices. A
// transaction may touch 64 MiB (invariant 10b), and a key needs room for the engine's
// own bytes beside it.
const (
	MaxKeyBytesBound      = 32 << 10
	MaxValueBytesBound    = 32 << 20
	MaxRequestBytesBound  = 64 << 20
	HistoryRetentionBound = 100 * 365 * 24 * time.Hour
	HistoryBytesBound     = 1 << 50
)

// MemberSpec names a server to add. ServerID is found out from the server itself.
type MemberSpec struct {
	ID       string `json:"id"`
	RaftAddr string `json:"raft_addr"`
	HTTPAddr string `json:"http_addr"`
	Voter    bool   `json:"voter"`
}

// Digest is the set hash of all keys at a revision.
type Digest struct {
	Revision    Revision `json:"revision"`
	Hash        string   `json:"hash"`
	ContentHash string   `json:"content_hash"`
	// VerifiedAt is when the hash was last recomputed from disk, RFC 3339; empty if never.
	VerifiedAt string `json:"verified_at,omitempty"`
}

// DiskStatus tells how much room a node's data takes and has.
type DiskStatus struct {
	DataBytes uint64 `json:"data_bytes"`
	LogBytes  uint64 `json:"log_bytes"`
	FreeBytes uint64 `json:"free_bytes"`
	Full      bool   `json:"full"`
}

// Status is the answer to GET /v1/status: one node about itself.
type Status struct {
	ID             string     `json:"id"`
	ServerID       string     `json:"server_id"`
	Role           string     `json:"role"`
	Term           uint64     `json:"term"`
	Leader         string     `json:"leader"`
	CommitIndex    uint64     `json:"commit_index"`
	AppliedIndex   uint64     `json:"applied_index"`
	LastLogIndex   uint64     `json:"last_log_index"`
	SnapshotIndex  uint64     `json:"snapshot_index"`
	Revision       Revision   `json:"revision"`
	OldestRevision Revision   `json:"oldest_revision"`
	Keys           uint64     `json:"keys"`
	Digest         Digest     `json:"digest"`
	Disk           DiskStatus `json:"disk"`
	Version        string     `json:"version"`
	UptimeS        int64      `json:"uptime_s"`
}

// Check is one line of a readiness report. A failing check says the cause and what
// to do in Detail.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// Server is a row of the Raft configuration. ID is the server's UUID.
type Server struct {
	ID    string `json:"id"`
	Addr  string `json:"addr"`
	Voter bool   `json:"voter"`
}

// MemberRecord is what the replicated state remembers of a server, so that a node
// that is gone still has a name. Removed servers stay recorded: they come back only
// when somebody asks for them.
type MemberRecord struct {
	ServerID   string `json:"server_id"`
	ID         string `json:"id"`
	HTTPAddr   string `json:"http_addr"`
	GossipAddr string `json:"gossip_addr"`
	// Nonvoter says that the server is to stay a read replica.
	Nonvoter bool `json:"nonvoter,omitempty"`
	Removed  bool `json:"removed,omitempty"`
}
