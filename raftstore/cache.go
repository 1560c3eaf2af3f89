package raftstore

import (
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// entryOverhead is what an entry costs in memory beside its data and extensions.
const entryOverhead = 128

// cache holds the newest entries of the log, contiguous and bounded in bytes, so that replication and
// the state machine read from memory what was just appended. raft's own LogCache bounds entries, and
// drops everything at each compaction.
type cache struct {
	limit  int64
	hits   atomic.Uint64
	misses atomic.Uint64

	mu      sync.RWMutex
	entries []raft.Log // entries[head:] are cached; entries[head] has index base
	head    int
	base    uint64
	bytes   int64
}

func entryBytes(l *raft.Log) int64 {
	return int64(len(l.Data)+len(l.Extensions)) + entryOverhead
}

// get copies the entry into out, sharing its data: nobody may change the bytes of a log entry.
func (c *cache) get(index uint64, out *raft.Log) bool {
	c.mu.RLock()
	ok := index >= c.base && index-c.base < uint64(len(c.entries)-c.head)
	if ok {
		*out = c.entries[c.head+int(index-c.base)]
	}
	c.mu.RUnlock()
	if ok {
		c.hits.Add(1)
	} else {
		c.misses.Add(1)
	}
	return ok
}

// append adds entries that continue the log; if they do not continue what is cached, they replace it.
func (c *cache) append(logs []*raft.Log) {
	if c.limit <= 0 || len(logs) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.entries) - c.head; n == 0 || logs[0].Index != c.base+uint64(n) {
		c.clearLocked()
		c.base = logs[0].Index
	}
	for _, l := range logs {
		c.entries = append(c.entries, *l)
		c.bytes += entryBytes(l)
	}
	for c.bytes > c.limit && c.head < len(c.entries) {
		c.popLocked()
	}
}

// dropBefore forgets the entries below first.
func (c *cache) dropBefore(first uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.head < len(c.entries) && c.base < first {
		c.popLocked()
	}
}

// dropAfter forgets the entries above last.
func (c *cache) dropAfter(last uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := len(c.entries); n > c.head && c.base+uint64(n-c.head)-1 > last; n = len(c.entries) {
		c.bytes -= entryBytes(&c.entries[n-1])
		c.entries[n-1] = raft.Log{}
		c.entries = c.entries[:n-1]
	}
}

func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clearLocked()
}

func (c *cache) clearLocked() {
	c.entries, c.head, c.base, c.bytes = nil, 0, 0, 0
}

// popLocked drops the oldest entry. The slice is moved down once half of it is empty, so its memory
// follows what is cached.
func (c *cache) popLocked() {
	c.bytes -= entryBytes(&c.entries[c.head])
	c.entries[c.head] = raft.Log{}
	c.head++
	c.base++
	if c.head >= 256 && c.head*2 >= len(c.entries) {
		n := copy(c.entries, c.entries[c.head:])
		clear(c.entries[n:])
		c.entries, c.head = c.entries[:n], 0
	}
}

// size is how many entries and bytes are cached.
func (c *cache) size() (entries int, bytes int64) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.entries) - c.head, c.bytes
}
