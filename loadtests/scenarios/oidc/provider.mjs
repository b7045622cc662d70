// An OpenID provider on loopback: LIBRARY PORT BASE. Access tokens are short-lived and refresh tokens good for one use, so
// that a gateway has something to do.
const [library, port, base] = process.argv.slice(2);
const { default: Provider } = await import(library);

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: "shop",
    client_secret: "a secret of the client",
    redirect_uris: [`${base}/oauth2/callback`],
    post_logout_redirect_uris: [`${base}/bye`],
    grant_types: ["authorization_code", "refresh_token"],
    response_types: ["code"],
  }],
  cookies: { keys: ["a key of the provider's own cookies"] },
  features: { devInteractions: { enabled: true }, rpInitiatedLogout: { enabled: true } },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  issueRefreshToken: async () => true,
  pkce: { methods: ["S256"], required: () => true },
  rotateRefreshToken: true,
  ttl: { AccessToken: 5, AuthorizationCode: 60, Grant: 600, IdToken: 60, Interaction: 600, RefreshToken: 600, Session: 600 },
});
provider.listen(Number(port), "127.0.0.1");
