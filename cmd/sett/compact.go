package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) compactCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "compact REV",
		Short: "Let history go: REV is the oldest revision that stays readable, unless a pin holds an older one",
		Args:  cobra.ExactArgs(1),
	}
	conn := a.connectionFlags(cmd)
	var o client.OnceOptions
	onceFlag(cmd, &o.IdempotencyKey)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		rev, err := parseRevision("REV", args[0])
		if err != nil {
			return err
		}
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			res, err := cl.Compact(ctx, rev, o)
			if err != nil {
				return err
			}
			switch {
			case conn.output == outputJSON:
				return printJSON(a.out, struct {
					To     uint64   `json:"compacted_to"`
					HeldBy []string `json:"held_by"`
				}{uint64(res.To), append([]string{}, res.HeldBy...)})
			case conn.output == outputRaw:
				_, err = fmt.Fprintln(a.out, res.To)
			case len(res.HeldBy) > 0:
				_, err = fmt.Fprintf(a.out, "compacted to revision %d only, which these pins hold: %s\n", res.To, strings.Join(res.HeldBy, ", "))
			default:
				_, err = fmt.Fprintf(a.out, "compacted to revision %d\n", res.To)
			}
			return err
		})
	}
	return cmd
}
