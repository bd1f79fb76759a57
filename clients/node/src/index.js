export { Client, defaultAddress } from "./client.js";
export { PosewardError } from "./errors.js";
