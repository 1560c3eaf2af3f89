package main

import (
	"context"
	"flag"
	"fmt"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
)

// runNode is one member until ctx ends. Everything that is not a name, a folder or an
// address stays at etcd's default; writes are synced to disk.
func runNode(ctx context.Context, args []string) error {
	cfg := embed.NewConfig()
	flags := flag.NewFlagSet("node", flag.ContinueOnError)
	flags.StringVar(&cfg.Name, "name", "", "name of the member")
	flags.StringVar(&cfg.Dir, "data-dir", "", "its folder")
	flags.StringVar(&cfg.InitialCluster, "initial-cluster", "", "name=peer URL of all members, comma separated")
	client := flags.String("client", "", "URL for clients")
	peer := flags.String("peer", "", "URL for the other members")
	if err := flags.Parse(args); err != nil {
		return err
	}
	cfg.LogLevel = "fatal"
	for _, u := range []struct {
		text string
		to   []*[]url.URL
	}{
		{*client, []*[]url.URL{&cfg.ListenClientUrls, &cfg.AdvertiseClientUrls}},
		{*peer, []*[]url.URL{&cfg.ListenPeerUrls, &cfg.AdvertisePeerUrls}},
	} {
		parsed, err := url.Parse(u.text)
		if err != nil {
			return err
		}
		for _, to := range u.to {
			*to = []url.URL{*parsed}
		}
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start member: %w", err)
	}
	defer e.Close()
	select {
	case err := <-e.Err():
		return err
	case <-ctx.Done():
		return nil
	}
}
