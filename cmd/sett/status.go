package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

func (a *app) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show every node: role, term, indices, lag, sizes and health, as each tells it itself",
		Args:  cobra.NoArgs,
	}
	conn := a.connectionFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			nodes, err := conn.nodeStatus(ctx, cl)
			if err != nil {
				return err
			}
			if conn.output == outputJSON {
				return printJSON(a.out, nodes)
			}
			rows := [][]string{{"ID", "HEALTH", "ROLE", "TERM", "LEADER", "REVISION", "KEYS", "APPLIED", "COMMIT", "LAG", "DATA", "LOG", "FREE", "UPTIME", "VERSION", "ENDPOINT"}}
			for _, n := range nodes {
				rows = append(rows, n.row())
			}
			return printTable(a.out, conn.output, rows)
		})
	}
	return cmd
}

// nodeHealth is one row of the status table.
type nodeHealth struct {
	Endpoint string `json:"endpoint"`
	// Health is "ready", "not ready: …" or "unreachable".
	Health string `json:"health"`
	Lag    uint64 `json:"lag"`
	kv.Status
}

func (n nodeHealth) row() []string {
	s := n.Status
	if s.Version == "" { // it did not answer
		return []string{s.ID, n.Health, s.Role, "", "", "", "", fmt.Sprint(s.AppliedIndex), "", fmt.Sprint(n.Lag), "", "", "", "", "", n.Endpoint}
	}
	return []string{
		s.ID, n.Health, s.Role, fmt.Sprint(s.Term), s.Leader, fmt.Sprint(s.Revision), fmt.Sprint(s.Keys), fmt.Sprint(s.AppliedIndex),
		fmt.Sprint(s.CommitIndex), fmt.Sprint(n.Lag), byteCount(s.Disk.DataBytes), byteCount(s.Disk.LogBytes), byteCount(s.Disk.FreeBytes),
		(time.Duration(s.UptimeS) * time.Second).String(), s.Version, n.Endpoint,
	}
}

// nodeStatus asks every endpoint given and every further member of the cluster. It
// fails only if nobody answers.
func (c *connection) nodeStatus(ctx context.Context, cl *client.Client) ([]nodeHealth, error) {
	nodes := c.askAll(ctx, cl.Endpoints())
	// A cluster without a leader still has nodes to show.
	info, err := cl.Cluster(ctx)
	if err != nil && !anyAnswered(nodes) {
		return nil, err
	}
	known := map[string]int{}
	for i, n := range nodes {
		known[n.ID] = i
	}
	scheme, _, _ := strings.Cut(cl.Endpoints()[0], "://")
	var more []string
	byEndpoint := map[string]kv.Member{}
	for _, m := range info.Members {
		if i, ok := known[m.ID]; ok {
			nodes[i].Lag = m.Lag
			continue
		}
		endpoint := scheme + "://" + m.HTTPAddr
		more = append(more, endpoint)
		byEndpoint[endpoint] = m
	}
	for _, n := range c.askAll(ctx, more) {
		m := byEndpoint[n.Endpoint]
		if n.ID == "" {
			n.ID, n.Role, n.AppliedIndex, n.ServerID = m.ID, m.Role, m.AppliedIndex, m.ServerID
			n.Health += " (" + m.State + " to the leader)"
		}
		n.Lag = m.Lag
		nodes = append(nodes, n)
	}
	return nodes, nil
}

func anyAnswered(nodes []nodeHealth) bool {
	for _, n := range nodes {
		if n.ID != "" {
			return true
		}
	}
	return false
}

// askAll asks all endpoints at once; the answers come in their order.
func (c *connection) askAll(ctx context.Context, endpoints []string) []nodeHealth {
	nodes := make([]nodeHealth, len(endpoints))
	var wg sync.WaitGroup
	for i, endpoint := range endpoints {
		wg.Go(func() { nodes[i] = c.ask(ctx, endpoint) })
	}
	wg.Wait()
	return nodes
}

func (c *connection) ask(ctx context.Context, endpoint string) nodeHealth {
	n := nodeHealth{Endpoint: endpoint, Health: "unreachable"}
	cl, err := c.dial(endpoint)
	if err != nil {
		return n
	}
	defer cl.Close()
	// A node that hangs must leave time for the others.
	limit, err := c.limit()
	if err != nil {
		return n
	}
	ctx, cancel := context.WithTimeout(ctx, limit/3)
	defer cancel()
	if n.Status, err = cl.Status(ctx); err != nil {
		n.Health = "unreachable: " + errorLine(err)
		return n
	}
	n.Health = "ready"
	if err := cl.Ready(ctx); err != nil {
		n.Health = "not ready: " + errorLine(err)
	}
	return n
}

// byteCount writes a size for people, in powers of 1024.
func byteCount(n uint64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%dB", n)
	}
	f, units := float64(n)/(1<<10), "KMGTPE"
	for f >= 1<<10 && len(units) > 1 {
		f, units = f/(1<<10), units[1:]
	}
	return fmt.Sprintf("%.1f%ciB", f, units[0])
}
