//! The kinds of trouble, as `/status` names them.

use crate::semantics::labels::labels;

labels! {
    /// What is wrong with a server.
    pub enum Diagnosis {
        /// A command was renamed.
        UnknownCommand = "unknown-command",
        /// The user lacks a right.
        Acl = "acl",
        /// The URL names a single Redis, and this is a node of a cluster.
        ClusterNode = "cluster-node",
        /// The cluster does not serve all slots.
        ClusterDown = "cluster-down",
        /// The URL names a cluster, and this is a single Redis.
        NoCluster = "no-cluster",
        /// There is no memory left.
        Memory = "memory",
        /// The server cannot save its data.
        Disk = "disk",
        /// The server has too few replicas.
        Replicas = "replicas",
        /// There are too many clients.
        MaxClients = "max-clients",
        /// The server takes local clients only.
        ProtectedMode = "protected-mode",
        /// A password is missing.
        NoLogin = "no-login",
        /// User or password are wrong.
        WrongLogin = "wrong-login",
        /// There is a password that the server does not know of.
        NoPassword = "no-password",
        /// User or password at a sentinel are wrong or missing.
        SentinelLogin = "sentinel-login",
        /// The URL names a single Redis, and this is a sentinel.
        Sentinel = "sentinel",
        /// The URL names sentinels, and this is none.
        NoSentinel = "no-sentinel",
        /// There is no such database.
        NoDatabase = "no-database",
        /// The server loads its data.
        Loading = "loading",
        /// A replica has lost its master.
        MasterDown = "master-down",
        /// The server is a replica.
        Replica = "replica",
        /// An HTTP server.
        Http = "http",
        /// Some other server.
        NotRedis = "not-redis",
        /// A proxy that takes some commands only.
        Proxy = "proxy",
        /// The server closes the connection without a word.
        Closes = "closes",
        /// The server speaks TLS only.
        TlsServer = "tls-server",
        /// The server does not speak TLS.
        PlainServer = "plain-server",
        /// Nothing listens there.
        NoListener = "refused",
        /// The host has no address.
        UnknownHost = "unknown-host",
        /// No way leads to the host.
        NoRoute = "no-route",
        /// There is no such socket, or it may not be used.
        NoSocket = "no-socket",
        /// The server says nothing.
        NoAnswer = "no-answer",
        /// The server is too old.
        Version = "version",
        /// The server is too far away for the budget.
        Far = "far",
        /// The certificate is of an unknown authority.
        Authority = "authority",
        /// The certificate is for other names.
        Name = "name",
        /// The certificate has no names.
        NoName = "no-name",
        /// The certificate is not valid at this time.
        Expired = "expired",
        /// The certificate cannot be verified for another reason.
        Certificate = "certificate",
        /// The server does not have the key of its certificate.
        StrangeKey = "strange-key",
        /// The server wants a certificate from us.
        ClientCertificate = "client-certificate",
        /// The server does not accept ours.
        RefusedCertificate = "refused-certificate",
        /// The server has no version of TLS that we have.
        TlsVersion = "tls-version",
        /// The server and we have no cipher or kind of key in common.
        Handshake = "handshake",
    }
}
