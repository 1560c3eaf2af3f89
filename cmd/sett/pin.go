package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/config"
	"github.com/settkv/sett/kv"
)

func (a *app) pinCommand() *cobra.Command {
	var ttl string
	cmd := &cobra.Command{
		Use:   "pin REV --ttl 1h",
		Short: "Hold history from REV on for some time, and print the id of the pin",
		Args:  cobra.ExactArgs(1),
	}
	conn := a.connectionFlags(cmd)
	var o client.OnceOptions
	onceFlag(cmd, &o.IdempotencyKey)
	cmd.Flags().StringVar(&ttl, "ttl", "", fmt.Sprintf("how long to hold it, at most %s", kv.MaxPinTTL))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		rev, err := parseRevision("REV", args[0])
		if err != nil {
			return err
		}
		if ttl == "" {
			return usagef("pin needs --ttl, how long to hold the history, such as 1h")
		}
		d, err := config.ParseDuration(ttl)
		if err != nil {
			return usagef("bad value %q for --ttl: %w", ttl, err)
		}
		if d <= 0 || d > kv.MaxPinTTL {
			return usagef("bad value %q for --ttl: want more than 0 and at most %s", ttl, kv.MaxPinTTL)
		}
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			pin, err := cl.Pin(ctx, rev, d, o)
			if err != nil {
				return err
			}
			expires := pin.ExpiresAt.Format(time.RFC3339Nano)
			switch conn.output {
			case outputJSON:
				return printJSON(a.out, struct {
					ID        string `json:"id"`
					Revision  uint64 `json:"revision"`
					ExpiresAt string `json:"expires_at"`
				}{pin.ID, uint64(pin.Revision), expires})
			case outputTable:
				return printTable(a.out, conn.output, [][]string{{"ID", "REVISION", "EXPIRES"}, {pin.ID, fmt.Sprint(pin.Revision), expires}})
			}
			_, err = fmt.Fprintln(a.out, pin.ID)
			return err
		})
	}
	return cmd
}

func parseRevision(name, text string) (kv.Revision, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 {
		return 0, usagef("bad value %q for %s: want a revision, such as 12", text, name)
	}
	return kv.Revision(n), nil
}
