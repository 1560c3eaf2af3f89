package consensus

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// syncingLogs is an in-memory log whose appends take as long as an fsync.
type syncingLogs struct {
	raft.LogStore
	took time.Duration
}

func (s *syncingLogs) StoreLogs(logs []*raft.Log) error {
	<-time.After(s.took) // stands for the disk
	return s.LogStore.StoreLogs(logs)
}

func benchCluster(b *testing.B) *testNode {
	tc := newCluster(b, 3, func(_ string, cfg *Config) {
		cfg.HeartbeatTimeout, cfg.LeaseTimeout, cfg.RPCTimeout = time.Second, time.Second/2, time.Second
		cfg.Logs = &syncingLogs{LogStore: cfg.Logs, took: 500 * time.Microsecond}
	})
	return tc.leader()
}

// BenchmarkPropose measures 256-byte commands on three nodes in memory, whose log
// stores take 0.5 ms for an append, by the number of clients.
func BenchmarkPropose(b *testing.B) {
	for _, clients := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			l := benchCluster(b)
			cmd := make([]byte, 256)
			before := l.c.LastIndex()
			b.ResetTimer()
			each(b, clients, func() error {
				_, _, err := l.c.Propose(context.Background(), cmd)
				return err
			})
			b.StopTimer()
			b.ReportMetric(float64(b.N)/float64(l.c.LastIndex()-before), "commands/entry")
		})
	}
}

// BenchmarkReadIndex measures the read gate without writes.
func BenchmarkReadIndex(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			l := benchCluster(b)
			b.ResetTimer()
			each(b, clients, func() error {
				_, err := l.c.ReadIndex(context.Background())
				return err
			})
		})
	}
}

// each spreads b.N calls over clients that call one after the other.
func each(b *testing.B, clients int, call func() error) {
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for range (b.N + clients - 1 - i) / clients {
				if err := call(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
